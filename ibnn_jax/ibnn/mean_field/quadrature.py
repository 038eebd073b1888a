"""Many neurons as few weighted points: Gauss-Lobatto quadrature of their distribution,
cell by cell.

The range of a group's values is cut into m equal cells. In every cell the neurons are
replaced by the quadrature rule with points at the two ends of the cell (shared with its
neighbours) and one inside, which integrates cubics exactly over the neurons of that
cell. A last point without weight makes their number 2m + 2, which suits vector units
(23 cells) and GPU kernels (31, 63). The weights are never negative, so sums over the
points inherit the symmetry and definiteness of sums over the neurons. Functions known
at the ends with two derivatives are interpolated by quintic polynomials."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

# Coefficients in u of the quintic with given value, h f', h^2 f'' at u = 0 and at u = 1
# (columns in that order).
_QUINTIC = np.array(
    [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0.5, 0, 0, 0],
        [-10, -6, -1.5, 10, -4, 0.5],
        [15, 8, 1.5, -15, 7, -1],
        [-6, -3, -0.5, 6, -3, 0.5],
    ]
)
_QUINTIC_SLOPE = np.arange(1, 6)[:, None] * _QUINTIC[1:]


class Cells(NamedTuple):
    """m equal cells per group, bounded by m + 1 nodes."""

    nodes: Float[Array, "G m+1"]
    width: Float[Array, "G 1"]

    @classmethod
    def spanning(cls, radius: Float[Array, "G 1"], count: int) -> "Cells":
        """Cells from -radius to radius."""
        least = 16 * jnp.finfo(radius.dtype).eps * (1 + radius)
        width = jnp.maximum(2 * radius / count, least)
        index = jnp.arange(count + 1, dtype=radius.dtype)[None]
        return cls(width * index - radius, width)

    @property
    def count(self) -> int:
        return self.nodes.shape[1] - 1

    def locate(self, x: Float[Array, "G n"]) -> "Place":
        position = (x - self.nodes[:, :1]) / self.width
        cell = jnp.clip(position.astype(jnp.int32), 0, self.count - 1)
        return Place(cell, position - cell.astype(position.dtype), self)


class Quadrature(NamedTuple):
    """Points that stand for the neurons: the m + 1 nodes, one point inside each cell,
    and the last node without weight.
    """

    points: Float[Array, "G 2m+2"]
    weights: Float[Array, "G 2m+2"]
    inner: Float[Array, "G m"]  # where in its cell each inner point lies, in (0, 1)
    defect: Float[
        Array, "G m"
        # Sum_k w_k (y_k - left)(right - y_k)(y_k - inner)^2, estimated: what a fourth
        # derivative / 24 costs
    ]

    def at_nodes(self, x: Float[Array, "G 2m+2"]) -> Float[Array, "G m+1"]:
        """What x has at the nodes."""
        return x[:, : self.inner.shape[1] + 1]

    def inside(self, x: Float[Array, "G 2m+2"]) -> Float[Array, "G m"]:
        """What x has at the inner points."""
        return x[:, self.inner.shape[1] + 1 : -1]

    @property
    def occupied(self) -> Bool[Array, "G m"]:
        """Cells whose inner point stands for neurons."""
        return self.inside(self.weights) > 0


class Place(NamedTuple):
    """Where n points lie: the cell, and the fraction of the cell to the left."""

    cell: Array
    u: Float[Array, "G n"]
    cells: Cells

    def quadrature(self, moments: list[Float[Array, "G m"]]) -> Quadrature:
        """The points that replace neurons, from the moments of their weights, none of
        them negative.
        """
        (nodes, width), m = self.cells, moments
        b0, b1 = jnp.maximum(m[1] - m[2], 0), m[2] - m[3]  # moments of u (1 - u)
        inner = jnp.clip(
            jnp.where(b0 > 0, b1 / jnp.where(b0 > 0, b0, 1), 0.5), 1e-3, 1 - 1e-3
        )
        # At most what leaves the ends no less than nothing, which rounding could ask of
        # neurons next to an end.
        share = b0 / (inner * (1 - inner))
        weight = jnp.minimum(
            share, jnp.minimum(m[1] / inner, (m[0] - m[1]) / (1 - inner))
        )
        right = jnp.maximum(m[1] - weight * inner, 0)
        left = jnp.maximum(m[0] - weight - right, 0)
        # It holds the sum of w (u (1 - u))^2, of which b0^2 / m0 is the least value
        # (Cauchy and Schwarz): that leaves at most the whole bracket for the defect,
        # and three fifths of it where the neurons lie evenly in their cell.
        defect = (
            0.6
            * b0
            * jnp.maximum(inner * (1 - inner) - b0 / jnp.where(m[0] > 0, m[0], 1), 0)
            * width**4
        )
        points = jnp.concatenate(
            [nodes, nodes[:, :-1] + inner * width, nodes[:, -1:]], axis=1
        )
        weights = jnp.concatenate(
            [_at_nodes(left, right), weight, jnp.zeros_like(width)], axis=1
        )
        return Quadrature(points, weights, inner, defect)

    def spread(
        self, moments: list[Float[Array, "G m"]]
    ) -> tuple[Float[Array, "G m+1"], Float[Array, "G m+1"]]:
        """(a, b) with sum_k v_k f(x_k) = sum_j a_j f_j + b_j f'_j at the nodes, exact
        for cubic f, from the moments of v.
        """
        m0, m1, m2, m3 = moments
        right, tail = 3 * m2 - 2 * m3, m3 - m2
        first = _at_nodes(m0 - right, right)
        return first, self.cells.width * _at_nodes(m1 - m2 + tail, tail)

    def interpolate(self, f, f1, f2, *, slope: bool = False) -> Float[Array, "G n"]:
        """f at the points (or f'), from f and its first two derivatives at the nodes,
        each [G, m+1].
        """
        h = self.cells.width
        # The slope has a table of its own: scaled after the product, XLA would scale it
        # anew for every neuron.
        data = jnp.stack([f / h, f1, h * f2] if slope else [f, h * f1, h**2 * f2])
        ends = jnp.concatenate([data[..., :-1], data[..., 1:]])
        table = jnp.tensordot(
            (_QUINTIC_SLOPE if slope else _QUINTIC).astype(f.dtype), ends, 1
        )
        *rest, value = self._columns(table)
        for coefficient in reversed(rest):
            value = value * self.u + coefficient
        return value

    def _columns(self, table: Float[Array, "k G m"]) -> list[Float[Array, "G n"]]:
        """What each column of the table has for the cell of every point."""
        return jax.lax.platform_dependent(
            self, table, tpu=Place._picked, default=Place._gathered
        )

    def _gathered(self, table):
        row = self._rows()
        return [
            column.reshape(-1).at[row].get(mode="promise_in_bounds") for column in table
        ]

    def _picked(self, table):
        """`_columns` on TPUs, which gather one number at a time: the product of one-hot
        rows with the table.

        As masked sums: six columns would leave a matrix unit all but empty, and nothing
        is rounded."""
        inside = self._inside()
        return [jnp.where(inside, column[..., None], 0).sum(1) for column in table]

    def _inside(self) -> Bool[Array, "G m n"]:
        """Which points lie in which cell."""
        cells = jnp.arange(self.cells.count, dtype=self.cell.dtype)
        return self.cell[:, None, :] == cells[None, :, None]

    def _rows(self, copies: int = 1):
        """Where each point's cell lies among those of all groups, copies included."""
        # Tied to the cells: a loop over blocks of groups would otherwise keep it for
        # every neuron instead of computing it.
        group, _ = jax.lax.optimization_barrier(
            (jnp.arange(self.cell.shape[0], dtype=jnp.int32), self.cells.width)
        )
        first = copies * self.cells.count * group[:, None]
        # Unsigned, so that it is never counted from the end.
        return (self.cell + first).astype(jnp.uint32)

    def moments(self, v: Float[Array, "G n"] | float) -> list[Float[Array, "G m"]]:
        """v, v u, v u^2 and v u^3 summed over the points of every cell.

        Each platform has its own way; GPUs look at all points while cells are few."""
        few = self.cells.count <= 64
        return jax.lax.platform_dependent(
            self,
            v,
            cpu=Place._scattered,
            tpu=Place._compared,
            default=Place._compared if few else Place._scattered,
        )

    def _compared(self, v):
        """`moments` on accelerators: each cell looks at all points, which has no
        additions in an order left to chance.
        """
        inside = self._inside()
        return [
            jnp.where(inside, (v * self.u**k)[:, None, :], 0).sum(-1) for k in range(4)
        ]

    def _scattered(self, v):
        """`moments` by one scatter of rows.

        The powers in a row are products of u and u^2, which vectorises. Neighbours in
        an image are alike and often share a cell. With one sum for all of them each
        addition waits for the one before, so they take turns at several sums. Of many
        neurons more sums: thousands of equal numbers would round to the same side."""
        (groups, n), count = self.cell.shape, self.cells.count
        u, odd, high = self.u[..., None], np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
        rows = (
            jnp.broadcast_to(v, self.u.shape)[..., None]
            * jnp.where(odd, u, 1)
            * jnp.where(high, u * u, 1)
        )
        copies = max(4, n // 256) if n > 128 else 1
        # On the flat array: a term for every column of [groups, n] would have each of
        # its elements divide to find its column.
        row = self._rows(copies).reshape(-1) + count * (
            jnp.arange(groups * n, dtype=jnp.uint32) % copies
        )
        total = (
            jnp.zeros((groups * copies * count, 4), rows.dtype)
            .at[row]
            .add(rows.reshape(-1, 4), mode="promise_in_bounds")
        )
        return list(jnp.moveaxis(total.reshape(groups, copies, count, 4).sum(1), -1, 0))


def _at_nodes(left, right):
    """What belongs to the left and to the right end of each cell, added up at the
    nodes.
    """
    return jnp.pad(left, ((0, 0), (0, 1))) + jnp.pad(right, ((0, 0), (1, 0)))
