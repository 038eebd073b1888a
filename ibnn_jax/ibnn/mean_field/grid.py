"""A grid of x = p z on which sums of tanh are products with constant numbers."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from ibnn_jax.ibnn.mean_field import spline
from ibnn_jax.ibnn.mean_field.patches import Patches

BLOCK = 32  # nodes whose coefficients are one row of a matrix product
HIGHEST = jax.lax.Precision.HIGHEST


@dataclass(frozen=True)
class Grid:
    """Equally spaced nodes around 0, the same for all groups.

    Args:
        nodes: how many; a multiple of 32.
        spacing: between neighbours, in units of x = p z; at least 0.2, for `halo`.
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

    @property
    def slope_error(self) -> float:
        """Of what a neuron adds to the slope of G, at most."""
        return spline.slope_error(self.spacing)

    @property
    def halo(self) -> int:
        """How many nodes beyond each end of a block act on it one by one.

        To those farther away tanh is its sign and sech^2 is 0, which errs by less than
        `error`.
        """
        beyond_half = np.abs(spline.taps(self.spacing).step[BLOCK // 2 + 1 :])
        return BLOCK if (beyond_half > self.error).any() else BLOCK // 2

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

    def bias(self, charges: Float[Array, "G nodes+2halo"]) -> Float[Array, "G nodes"]:
        """Coefficients of G(t) = sum_k v_k tanh(x_k - t) for the charges of v."""
        halo, dtype = self.halo, charges.dtype
        near = self._product(charges, spline.taps(self.spacing).step, odd=True, far=1)
        # The first node of every piece, and of every block.
        first = np.arange(-halo, self.nodes + halo, halo)[:, None]
        block = np.arange(0, self.nodes, BLOCK)
        above, below = first > block + BLOCK, first < block - halo
        sign = above.astype(dtype) - below.astype(dtype)
        # A product: XLA's sum over so short an axis takes as long as all the rest here.
        ones = np.ones((halo, 1), dtype)
        total = jnp.matmul(self._pieces(charges), ones, precision=HIGHEST)[..., 0]
        far = jnp.matmul(total, sign, precision=HIGHEST)
        return near + jnp.repeat(far, BLOCK, axis=1)

    def slope(self, charges: Float[Array, "G nodes+2halo"]) -> Float[Array, "G nodes"]:
        """Coefficients of sum_k v_k sech^2(x_k - t)."""
        return self._product(charges, spline.taps(self.spacing).slope)

    def moment(self, charges: Float[Array, "G nodes+2halo"]) -> Float[Array, "G nodes"]:
        """Coefficients of sum_k v_k (x_k - t) sech^2(x_k - t)."""
        return self._product(charges, spline.taps(self.spacing).moment, odd=True)

    def _product(self, charges, taps, *, odd=False, far=0):
        """charges times the Toeplitz matrix of the taps.

        far: added to an odd matrix where the source lies above.
        """
        halo = self.halo
        offset = np.arange(BLOCK + 2 * halo)[:, None] - halo - np.arange(BLOCK)
        padded = np.pad(taps[: halo + 1], (0, len(offset)))
        matrix = padded[np.abs(offset)] + far
        matrix = (np.sign(offset) * matrix if odd else matrix).astype(charges.dtype)
        # Every block of results reads its own nodes and the halo on each side. As a
        # matrix product: XLA would compute a sum of shifted arrays again for every
        # reader.
        pieces, each = self._pieces(charges), BLOCK // halo
        last = pieces.shape[1] - each - 1
        window = [pieces[:, k : k + last : each] for k in range(each + 2)]
        wide = jnp.concatenate(window, axis=-1)
        sums = jnp.einsum("gbs,st->gbt", wide, matrix, precision=HIGHEST)
        return sums.reshape(len(charges), self.nodes)

    def _pieces(self, charges):
        """The charges in pieces as long as the halo."""
        return charges.reshape(len(charges), -1, self.halo)


@dataclass(frozen=True)
class OneOf:
    """One of several grids, which is known only when the program runs.

    So what is done around the grid is compiled once for all of them.
    """

    grids: tuple[Grid | Patches, ...]
    number: Int[Array, ""]

    @property
    def last(self) -> Grid | Patches:
        """The grid that holds most."""
        return self.grids[-1]

    @property
    def reach(self) -> Float[Array, ""]:
        return self._of_each("reach")

    @property
    def error(self) -> Float[Array, ""]:
        return self._of_each("error")

    @property
    def slope_error(self) -> Float[Array, ""]:
        return self._of_each("slope_error")

    def _of_each(self, name: str) -> Float[Array, ""]:
        return jnp.asarray([getattr(grid, name) for grid in self.grids])[self.number]

    def run(self, f: Callable, *arrays: Array):
        """f(grid, *arrays) on the grid."""
        branches = [partial(f, grid) for grid in self.grids]
        return jax.lax.switch(self.number, branches, *arrays)


AnyGrid = Grid | Patches | OneOf


@dataclass(frozen=True)
class Place:
    """Neurons on a grid: the cell, and the fraction of the cell to the left."""

    cell: Array
    u: Float[Array, "G n"]
    grid: Grid

    def charges(
        self, v: Float[Array, "G n"] | None = None
    ) -> Float[Array, "G nodes+2halo"]:
        """sum_k v_k beta(x_k / h - j) / n at the nodes j; v = 1 when None.

        Before the nodes and after them lie a halo of empty ones.
        """
        u, n = self.u[..., None], self.u.shape[1]
        cubics = jnp.asarray(spline.WEIGHTS / n, u.dtype)[None, None]
        rows = cubics[..., 3]
        for power in (2, 1, 0):
            rows = rows * u + cubics[..., power]
        return self._scattered(rows if v is None else rows * v[..., None])

    def read(self, *coefficients: Float[Array, "G nodes"]) -> tuple[Array, ...]:
        """The functions of these coefficients at the neurons."""
        return tuple(self._value(self._taken(c)) for c in coefficients)

    def read_with_slope(
        self, coefficients: Float[Array, "G nodes"]
    ) -> tuple[Float[Array, "G n"], Float[Array, "G n"]]:
        """The function of these coefficients and its derivative at the neurons."""
        u, v, taken = self.u, 1 - self.u, self._taken(coefficients)
        weights = (-v * v, u * (3 * u - 4), v * (4 - 3 * v), u * u)
        return self._value(taken), _sum(weights, taken) * (0.5 / self.grid.spacing)

    def samples(
        self, coefficients: Float[Array, "G nodes"]
    ) -> tuple[Float[Array, "1 k"], Float[Array, "G k"]]:
        """(t from left to right, the function there): the ends of all cells."""
        cells = self.grid.cells
        t = (np.arange(cells + 1) - cells / 2) * self.grid.spacing
        left, here, right = (coefficients[:, k : k + cells + 1] for k in range(3))
        return jnp.asarray(t, self.u.dtype)[None], (left + 4 * here + right) * (1 / 6)

    def _value(self, taken):
        """The function at the neurons, from its coefficients at their four nodes."""
        u, v = self.u, 1 - self.u
        weights = (v * v * v, _middle(u), _middle(v), u * u * u)
        return _sum(weights, taken) * (1 / 6)

    def _taken(self, coefficients):
        """The coefficients at the four nodes of every neuron."""
        flat, row = coefficients.reshape(-1), self._rows()
        index = (row + jnp.uint32(k) for k in range(4))
        return [flat.at[i].get(mode="promise_in_bounds") for i in index]

    def _rows(self):
        """Where each neuron's first node lies among the nodes of all groups."""
        first = self.grid.nodes * jnp.arange(len(self.cell), dtype=jnp.int32)
        # Unsigned, so that it is never counted from the end.
        return (self.cell + first[:, None]).astype(jnp.uint32)

    def _scattered(self, rows: Float[Array, "G n 4"]) -> Float[Array, "G nodes+2halo"]:
        """Every neuron's row added to its four nodes."""
        (groups, n), grid = self.cell.shape, self.grid
        length = grid.nodes + 2 * grid.halo
        # An addition waits for the one before it where the two share some of their
        # nodes, but not all. Where neurons lie close, cells take turns at four sums.
        copies = 4 if n > grid.nodes else 1
        # And many additions to one sum, one by one, would round to the same side.
        sections = max(1, n // max(length, 1024))
        group = sections * jnp.arange(groups, dtype=jnp.int32)[:, None]
        if sections > 1:
            index = jax.lax.broadcasted_iota(jnp.int32, self.cell.shape, 1)
            group = group + index // (-(-n // sections))
        first = (copies * group + self.cell % copies) * length + grid.halo + self.cell
        # From the neurons, so that it is sharded and varies over a mesh as they do.
        zeros = 0 * self.u[:, :1]
        zeros = jnp.broadcast_to(zeros, (groups, sections * copies * length))
        total = jax.lax.scatter_add(
            zeros.reshape(-1),
            first.astype(jnp.uint32).reshape(-1, 1),
            rows.reshape(-1, 4),
            jax.lax.ScatterDimensionNumbers((1,), (), (0,)),
            mode="promise_in_bounds",
        )
        parts = total.reshape(groups, sections, copies, length)
        parts = parts.sum(1) if sections > 1 else parts[:, 0]
        return sum((parts[:, k] for k in range(1, copies)), parts[:, 0])


def _sum(weights, values) -> Array:
    first, *others = map(operator.mul, weights, values)
    return sum(others, first)


def _middle(u):
    """Six times the weight of a cell's end, u away."""
    return 4 - 6 * u * u + 3 * u * u * u
