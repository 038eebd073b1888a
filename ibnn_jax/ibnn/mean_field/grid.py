"""A grid of x = p z on which sums of tanh are products with constant numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from ibnn_jax.ibnn.mean_field import spline

# Nodes of a block. Three blocks leave out 3e-6 of the taps at a spacing of 0.22.
BLOCK = 32
HIGHEST = jax.lax.Precision.HIGHEST

keep = jax.lax.optimization_barrier
"""XLA would compute what lies before it anew in every operation that reads it."""


@dataclass(frozen=True)
class Grid:
    """Equally spaced nodes around 0, the same for all groups.

    Args:
        nodes: how many; a multiple of 32.
        spacing: between neighbours, in units of x = p z.
    """

    nodes: int
    spacing: float

    @property
    def cells(self) -> int:
        """Cells in which a neuron may lie.

        Its four nodes are the ends of the cell and one more on each side.
        """
        return self.nodes - 4

    @property
    def reach(self) -> float:
        """Neurons with |x| up to here are inside."""
        return self.cells * self.spacing / 2

    @property
    def error(self) -> float:
        """Of what a neuron adds to G, at most."""
        return spline.error(self.spacing)

    def run(self, f: Callable, *arrays: Array):
        """f(self, *arrays)."""
        return f(self, *arrays)

    def place(self, x: Float[Array, "G n"]) -> "Place":
        """Where the neurons lie; those outside lie at the ends."""
        half = np.asarray(self.cells / 2, x.dtype)
        position = x * np.asarray(1 / self.spacing, x.dtype) + half
        position = jnp.clip(position, 0, np.asarray(self.cells, x.dtype))
        cell = jnp.minimum(position.astype(jnp.int32), self.cells - 1)
        return Place(cell, position - cell.astype(x.dtype), self)

    def bias(self, charges: Float[Array, "G nodes"]) -> Float[Array, "G nodes"]:
        """Coefficients of G(t) = sum_k v_k tanh(x_k - t) for the charges of v."""
        step = spline.taps(self.spacing).step
        blocks = self.nodes // BLOCK
        apart = np.arange(blocks)[:, None] - np.arange(blocks)
        far = np.where(np.abs(apart) > 1, np.sign(apart), 0)
        # A product: XLA's sum over so short an axis takes as long as all the rest here.
        ones = np.ones((BLOCK, 1), charges.dtype)
        blocked = charges.reshape(len(charges), blocks, BLOCK)
        total = jnp.matmul(blocked, ones, precision=HIGHEST)[..., 0]
        total = jnp.matmul(total, far.astype(charges.dtype), precision=HIGHEST)
        near = self._product(charges, step, odd=True, far=1)
        return near + jnp.repeat(total, BLOCK, axis=1)

    def slope(self, charges: Float[Array, "G nodes"]) -> Float[Array, "G nodes"]:
        """Coefficients of sum_k v_k sech^2(x_k - t)."""
        return self._product(charges, spline.taps(self.spacing).slope)

    def moment(self, charges: Float[Array, "G nodes"]) -> Float[Array, "G nodes"]:
        """Coefficients of sum_k v_k (x_k - t) sech^2(x_k - t)."""
        return self._product(charges, spline.taps(self.spacing).moment, odd=True)

    def _product(self, charges, taps, *, odd=False, far=0):
        """charges times the Toeplitz matrix of the taps.

        far: added to an odd matrix where the source lies above.
        """
        offset = np.arange(3 * BLOCK)[:, None] - BLOCK - np.arange(BLOCK)
        padded = np.pad(taps, (0, len(offset)))
        matrix = padded[np.abs(offset)] + far
        matrix = (np.sign(offset) * matrix if odd else matrix).astype(charges.dtype)
        # Every block of results reads its own block and one on each side. As a matrix
        # product: XLA would compute a sum of shifted arrays again for every reader.
        padded = jnp.pad(charges, ((0, 0), (BLOCK, BLOCK)))
        blocks = padded.reshape(len(charges), self.nodes // BLOCK + 2, BLOCK)
        wide = jnp.concatenate([blocks[:, :-2], blocks[:, 1:-1], blocks[:, 2:]], -1)
        found = jnp.einsum("gbs,st->gbt", wide, matrix, precision=HIGHEST)
        return found.reshape(charges.shape)


@dataclass(frozen=True)
class OneOf:
    """One of several grids, which is known only when the program runs.

    So what is done around the grid is compiled once for all of them.
    """

    grids: tuple[Grid, ...]
    number: Int[Array, ""]

    @property
    def reach(self) -> Float[Array, ""]:
        return jnp.asarray([grid.reach for grid in self.grids])[self.number]

    @property
    def error(self) -> Float[Array, ""]:
        return jnp.asarray([grid.error for grid in self.grids])[self.number]

    def run(self, f: Callable, *arrays: Array):
        """f(grid, *arrays) on the grid."""
        branches = [partial(f, grid) for grid in self.grids]
        return jax.lax.switch(self.number, branches, *arrays)


@dataclass(frozen=True)
class Place:
    """Neurons on a grid: the cell, and the fraction of the cell to the left."""

    cell: Array
    u: Float[Array, "G n"]
    grid: Grid

    def charges(self, v: Float[Array, "G n"] | None = None) -> Float[Array, "G nodes"]:
        """sum_k v_k beta(x_k / h - j) / n at the nodes j; v = 1 when None."""
        u, n = self.u[..., None], self.u.shape[1]
        cubics = jnp.asarray(spline.WEIGHTS / n, u.dtype)[None, None]
        rows = cubics[..., 3]
        for power in (2, 1, 0):
            rows = rows * u + cubics[..., power]
        total = self._scattered(rows if v is None else rows * v[..., None])
        return keep(sum(_right(total[..., k], k) for k in range(4)))

    def read(self, *coefficients: Float[Array, "G nodes"]) -> tuple[Array, ...]:
        """The functions of these coefficients at the neurons."""
        u, v, row = self.u, 1 - self.u, self._rows()
        sixth = jnp.asarray(1 / 6, u.dtype)
        weights = (v * v * v, _middle(u), _middle(v), u * u * u)
        return tuple(
            sixth
            * sum(
                weight * flat.at[row + jnp.uint32(k)].get(mode="promise_in_bounds")
                for k, weight in enumerate(weights)
            )
            for flat in (c.reshape(-1) for c in coefficients)
        )

    def _rows(self):
        """Where each neuron's first node lies among the nodes of all groups."""
        first = self.grid.nodes * jnp.arange(len(self.cell), dtype=jnp.int32)
        # Unsigned, so that it is never counted from the end.
        return (self.cell + first[:, None]).astype(jnp.uint32)

    def _scattered(self, rows: Float[Array, "G n 4"]) -> Float[Array, "G nodes 4"]:
        """The rows summed over the neurons of every cell.

        A cell counts as the first of its nodes; the last three are empty.
        """
        # From the neurons, so that it is sharded and varies over a mesh as they do.
        shape = (len(rows), self.grid.nodes, 4)
        total = jnp.broadcast_to(0 * self.u[:, :1, None], shape)
        total = (
            total.reshape(-1, 4)
            .at[self._rows().reshape(-1)]
            .add(rows.reshape(-1, 4), mode="promise_in_bounds")
        )
        return keep(total.reshape(shape))


def _middle(u):
    """Six times the weight of a cell's end, u away."""
    return 4 - 6 * u * u + 3 * u * u * u


def _right(x, k):
    """x moved k nodes up."""
    return jnp.pad(x[:, : x.shape[1] - k], ((0, 0), (k, 0))) if k else x
