"""Which grid serves a group, and work on groups by the grid that serves them.

The rule: of the grids, in the order of their cost, the first that holds the neurons
and whose error, with the neurons at the worst places, is at most twice the tolerance:
hardly any group is that unlucky. The groups are sorted by their grids and taken a few
at a time, each few on the largest grid that one of them needs. So a wide group makes
only its few neighbours pay. Likewise a slow one: it is left to a second round, which
gathers those that the first left undone.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from ibnn_jax.core.batching import on_cpu, run_in_chunks
from ibnn_jax.ibnn.mean_field.grid import Grid, OneOf

# The first is finer, for narrow groups under a strong lam; the last but one serves
# normal activations of a deviation of up to 10 at p = 10, the last those with outliers.
GRIDS = (
    Grid(448, 0.22),
    Grid(896, 0.3125),
    Grid(1792, 0.3125),
    Grid(3584, 0.3125),
    Grid(7168, 0.3125),
)
# One alone on GPUs, where fewer nodes take as long
GRIDS_GPU = (Grid(3584, 0.3125),)
FEW = 128  # neurons whose pairs are worth no compilation of a grid
# Neurons that are treated together, where a group counts as at least `LEAST` of them:
# a CPU's cache holds what they need; a GPU takes a million as fast as a few
TOGETHER_CPU, TOGETHER_GPU, LEAST = 32_000, 1_000_000, 512
# The share of them that each round may leave undone. A GPU takes all groups at once
ROUNDS_CPU, ROUNDS_GPU = (0.4, 0.0), (0.0,)


def grids_for(n: int) -> tuple[Grid, ...]:
    """The grids that cost less than all pairs of n neurons: a node costs some 20."""
    if n <= FEW:
        return ()
    grids = GRIDS if on_cpu() else GRIDS_GPU
    return tuple(grid for grid in grids if 20 * grid.nodes <= n * n)


def choose(
    extent: Float[Array, "G 1"], q: Float[Array, "G 1"], tol: Float[Array, "G 1"], grids
) -> Int[Array, "G"]:
    """Which grid serves each group with |x| up to the extent; their number where none
    does.
    """
    index = jnp.full_like(extent, len(grids), dtype=jnp.int32)
    for k, grid in reversed(list(enumerate(grids))):
        serves = (extent <= grid.reach) & (grid.error * jnp.abs(q) <= 2 * tol)
        index = jnp.where(serves, jnp.int32(k), index)
    return index[:, 0]


def run_in_rounds(
    mask: Bool[Array, "G"], index: Int[Array, "G"], grids, f: Callable, x, *operands
):
    """x with what f finds in the groups of `mask`.

    f(grid, left, x, *operands) -> (x, which groups are done). f may stop while a share
    `left` of its groups is not done; the next round asks for these again.
    """
    rounds = jnp.asarray(ROUNDS_CPU if on_cpu() else ROUNDS_GPU, jnp.float32)

    def once(k, state):
        on_grid = partial(_asked, f, rounds[k])
        return run_on_grids(state[1], index, grids, on_grid, state, *operands)

    return jax.lax.fori_loop(0, len(rounds), once, (x, mask))[0]


def run_on_grids(
    mask: Bool[Array, "G"], index: Int[Array, "G"], grids, f: Callable, x, *operands
):
    """x with f(grid, x, *operands) in the groups of `mask`.

    Every leaf of x and of the operands is led by groups.
    """

    def on_largest(x, index, *operands):
        largest = OneOf(grids, jnp.minimum(index.max(), len(grids) - 1))
        return f(largest, x, *operands)

    together = TOGETHER_CPU if on_cpu() else TOGETHER_GPU
    chunk = max(1, together // max(operands[0].shape[1], LEAST))
    key = jnp.where(mask, index, len(grids) + 1)
    return run_in_chunks(mask, key, chunk, on_largest, x, index, *operands)


def _asked(f: Callable, left, grid, state, *operands):
    """(x, which groups are to be asked again) after one call of f."""
    x, done = f(grid, left, state[0], *operands)
    return x, ~done
