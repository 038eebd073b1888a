"""Which grid serves a group, and work on groups by the grid that serves them.

The rule: of the grids, in the order of their cost, the first that holds the neurons
and whose error, with the neurons at the worst places, is at most twice the tolerance
(hardly any group is that unlucky) and leaves the steepest slope right. The groups are
sorted by their grids and taken a few at a time, each few on the largest grid that one
of them needs, but never on one that errs more. So a wide group makes only its few
neighbours pay. Likewise a slow one: it is left to a second round, which gathers those
that the first left undone.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from ibnn_jax.core.batching import run_in_chunks
from ibnn_jax.ibnn.mean_field.grid import OneOf
from ibnn_jax.ibnn.mean_field.limits import SLOPE_ERROR
from ibnn_jax.ibnn.mean_field.sizes import sizes

LEAST = 512  # a group counts as at least so many neurons


def choose(
    extent: Float[Array, "G 1"],
    q: Float[Array, "G 1"],
    slope: Float[Array, "G 1"],
    tol: Float[Array, "G 1"],
    grids,
) -> Int[Array, "G"]:
    """Which grid serves each group with |x| up to the extent, where x has at most this
    slope; their number where none does.
    """
    index = jnp.full_like(extent, len(grids), dtype=jnp.int32)
    for k, grid in reversed(list(enumerate(grids))):
        serves = (extent <= grid.reach) & (grid.error * jnp.abs(q) <= 2 * tol)
        serves &= grid.slope_error * (slope - 1) <= SLOPE_ERROR
        index = jnp.where(serves, jnp.int32(k), index)
    return index[:, 0]


def roomiest(index: Int[Array, "G"], grids) -> Int[Array, "G"]:
    """The last of the grids that errs no more than this one."""
    errors = [grid.error for grid in grids]
    last = [max(k for k, e in enumerate(errors) if e <= error) for error in errors]
    return jnp.asarray(last, jnp.int32)[index]


def run_in_rounds(
    mask: Bool[Array, "G"], index: Int[Array, "G"], grids, f: Callable, x, *operands
):
    """x with what f finds in the groups of `mask`.

    f(grid, left, x, *operands) -> (x, which groups are done). f may stop while a share
    `left` of its groups is not done; the next round asks for these again.
    """
    rounds = jnp.asarray(sizes().rounds, jnp.float32)

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

    chunk = max(1, sizes().together // max(operands[0].shape[1], LEAST))
    key = jnp.where(mask, index, len(grids) + 1)
    kind = jnp.asarray(_kinds(grids), jnp.int32)[jnp.minimum(index, len(grids) - 1)]
    return run_in_chunks(mask, key, chunk, on_largest, x, index, *operands, kind=kind)


def _kinds(grids) -> list[int]:
    """For each grid a number, one more than that of the grid before if it errs more.

    In place of a grid every later one of the same number will do.
    """
    kinds = [0]
    for last, grid in pairwise(grids):
        kinds.append(kinds[-1] + (grid.error > last.error))
    return kinds


def _asked(f: Callable, left, grid, state, *operands):
    """(x, which groups are to be asked again) after one call of f."""
    x, done = f(grid, left, state[0], *operands)
    return x, ~done
