"""Which grid serves a group, and work on groups by the grid that serves them.

The rule: of the grids, in the order of their cost, the first that holds the neurons
and whose error, with the neurons at the worst places, is at most twice the tolerance:
hardly any group is that unlucky. The groups are sorted by it and taken
a few at a time, each few on the largest grid that one of them needs, so a wide group
makes no more than its few neighbours pay.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from ibnn_jax.ibnn.mean_field.grid import Grid
from ibnn_jax.ibnn.mean_field.newton import extent

# The first is for what 19 cells just miss; the others for activations of a deviation of
# up to 3, and up to 10, at p = 10. Compilation takes a second or two for each of them.
GRIDS = (Grid(160, 0.15), Grid(896, 0.3125), Grid(3584, 0.3125))
FEW = 128  # neurons whose pairs are worth no compilation of a grid
# Neurons, or nodes if more, of the groups that are treated together: a CPU's cache
# holds what they need
TOGETHER = 32_000


def grids_for(n: int) -> tuple[Grid, ...]:
    """The grids that cost less than all pairs of n neurons: a node costs some 20."""
    if n <= FEW:
        return ()
    return tuple(grid for grid in GRIDS if 20 * grid.nodes <= n * n)


def choose(
    y: Float[Array, "G n"], q: Float[Array, "G 1"], tol: Float[Array, "G 1"], grids
) -> tuple[Int[Array, "G"], Float[Array, "G"]]:
    """(which grid serves each group, their number where none does; the extent of x)."""
    reach = extent(y, q)
    index = jnp.full_like(reach, len(grids), dtype=jnp.int32)
    for k, grid in reversed(list(enumerate(grids))):
        serves = (reach <= grid.reach) & (grid.error * jnp.abs(q) <= 2 * tol)
        index = jnp.where(serves, jnp.int32(k), index)
    return index[:, 0], reach[:, 0]


def run_on_grids(
    mask: Bool[Array, "G"], index: Int[Array, "G"], grids, f: Callable, x, *operands
):
    """x with f(grid, x, *operands) in the groups of `mask`.

    Every leaf of x and of the operands is led by groups.
    """
    groups, n = operands[0].shape
    if isinstance(groups, int) and groups == 0:
        return x
    chunk = max(1, TOGETHER // max(n, 512))
    if isinstance(groups, int):  # a symbol under jax.export
        chunk = min(chunk, groups)
    count = mask.sum(dtype=jnp.int32)
    branches = [lambda *part, grid=grid: f(grid, *part) for grid in grids]

    def needed(x):
        last = len(grids)
        order = jnp.argsort(jnp.where(mask, index, last + 1), stable=True)
        order = jnp.pad(order.astype(jnp.int32), (0, chunk))

        def body(carry):
            start, x = carry
            rows = jax.lax.dynamic_slice(order, (start,), (chunk,))
            asked = start + jnp.arange(chunk, dtype=jnp.int32) < count
            taken = jnp.where(asked, rows, rows[0])  # the others repeat the first
            which = jnp.minimum(index.at[taken].get(mode="clip").max(), last - 1)
            part = jax.tree.map(lambda a: a.at[taken].get(mode="clip"), (x, *operands))
            new = jax.lax.switch(which, branches, *part)
            put_at = jnp.where(asked, rows, groups)

            def put(old, a):
                return old.at[put_at].set(a, mode="drop")

            return start + chunk, jax.tree.map(put, x, new)

        start = jnp.zeros_like(count, dtype=jnp.int32)
        return jax.lax.while_loop(lambda carry: carry[0] < count, body, (start, x))[1]

    # A branch, not a loop that may take no pass: docs/notes/xla.md#branches.
    return jax.lax.cond(count > 0, needed, lambda x: x, x)
