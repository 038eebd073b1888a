"""Equally spaced nodes that stand for many neurons: interpolation, its transpose, and sums over nodes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ibnn_jax.couplings import Operator
from ibnn_jax.sigmas import Sigma


class Grid(NamedTuple):
    """m equally spaced nodes per group."""

    nodes: Float[Array, "G m"]
    step: Float[Array, "G 1"]

    @classmethod
    def spanning(cls, x: Float[Array, "G n"], size: int) -> "Grid":
        low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
        tiny = 16 * jnp.finfo(x.dtype).eps * (1 + jnp.maximum(jnp.abs(low), jnp.abs(high)))
        step = jnp.maximum((high - low) / (size - 1), tiny)
        return cls(low + step * jnp.arange(size, dtype=x.dtype), step)

    @property
    def size(self) -> int:
        return self.nodes.shape[1]

    def locate(self, x: Float[Array, "G n"]) -> "Place":
        position = (x - self.nodes[:, :1]) / self.step
        cell = jnp.clip(position.astype(jnp.int32), 0, self.size - 2)
        return Place(cell, position - cell, self)


    def spectrum(self, f: Callable[[Array], Array], p: Float[Array, "G 1"]) -> Array:
        """The transform of t -> f(p t) that `correlate` multiplies by, [G, size + 1] complex.

        On equally spaced nodes the matrix f(p (t_l - t_j)) is Toeplitz, so its products are convolutions.
        """
        shift = np.fft.fftfreq(2 * self.size, 1 / (2 * self.size)).astype(np.int32)
        return jnp.fft.rfft(f(-p * self.step * shift.astype(self.step.dtype)))

    def transform(self, v: Float[Array, "G m"]) -> Array:
        """v, zero padded, in the frequency domain."""
        return jnp.fft.rfft(v, 2 * self.size)

    def correlate(self, product: Array) -> Float[Array, "G m"]:
        """From `spectrum(f, p) * transform(v)` to sum_l f(p (t_l - t_j)) v_l at each node j."""
        return jnp.fft.irfft(product, 2 * self.size)[:, : self.size]


class Place(NamedTuple):
    """Where n points lie among the nodes: the cell's left node, and the fraction of the cell to its right."""

    cell: Array
    u: Float[Array, "G n"]
    grid: Grid

    def _gather(self, table, offset):
        return jnp.take_along_axis(table, self.cell + offset, axis=1, mode="promise_in_bounds")

    def linear(self, values: Float[Array, "G m"]) -> Float[Array, "G n"]:
        """f at the points by linear interpolation."""
        return (1 - self.u) * self._gather(values, 0) + self.u * self._gather(values, 1)

    def hermite(self, values: Float[Array, "G m"], slopes: Float[Array, "G m"]):
        """(f, f') at the points by cubic interpolation, from f and f' at the nodes."""
        h, u = self.grid.step, self.u
        f0, f1 = self._gather(values, 0), self._gather(values, 1)
        g0, g1 = h * self._gather(slopes, 0), h * self._gather(slopes, 1)
        rise = f1 - f0
        a, b = g0 - rise, rise - g1
        f = f0 + u * (rise + (1 - u) * ((1 - u) * a + u * b))
        slope = rise + (1 - 2 * u) * ((1 - u) * a + u * b) + u * (1 - u) * (b - a)
        return f, slope / h

    def spread_linear(self, *weights: Float[Array, "G n"]) -> list[Float[Array, "G m"]]:
        """For each v, rho with sum_k v_k g(x_k) = sum_j rho_j g(t_j), exact for linear g: transposed `linear`."""
        sums = self._moments([moment for v in weights for moment in (v, v * self.u)])
        return [zeroth - first + _shift(first) for zeroth, first in zip(sums[::2], sums[1::2])]

    def spread(self, v: Float[Array, "G n"]) -> tuple[Array, Array]:
        """(rho, mu) with sum_k v_k g(x_k) = sum_j rho_j g(t_j) + mu_j g'(t_j), exact for cubic g: transposed `hermite`."""
        u = self.u
        m0, m1, m2, m3 = self._moments([v, v * u, v * u * u, v * u * u * u])
        right, tail = 3 * m2 - 2 * m3, m3 - m2
        return m0 - right + _shift(right), self.grid.step * (m1 - m2 + tail + _shift(tail))

    def _moments(self, columns: list[Float[Array, "G n"]]) -> list[Float[Array, "G m"]]:
        """Each column summed over the points of every cell, at the cell's left node: one scatter for all of them."""
        groups, size = self.grid.nodes.shape
        index = (self.cell + size * jnp.arange(groups)[:, None]).reshape(-1)
        values = jnp.stack(columns, -1).reshape(-1, len(columns))
        total = jnp.zeros((groups * size, len(columns)), values.dtype).at[index].add(values, mode="promise_in_bounds")
        return list(jnp.moveaxis(total.reshape(groups, size, len(columns)), -1, 0))


def _shift(v):
    """What belongs to the right node of each cell, moved there; the last node has no cell."""
    return jnp.pad(v, ((0, 0), (1, 0)))[:, :-1]


@partial(jax.tree_util.register_dataclass, data_fields=["weight"], meta_fields=["shape", "sigma"])
@dataclass(frozen=True)
class NodeOperator(Operator):
    """Pairwise sums over m nodes of mass rho: w_jl = rho_l, symmetric in the inner product that rho defines."""

    shape: tuple[int, ...]
    sigma: Sigma
    weight: Float[Array, "G m"]
    row_sum = 1.0
    psd = True

    def _pair_sum(self, f, z, p, v):
        mass = self.weight if v is None else self.weight * v
        return (f(z[:, None, :] - z[:, :, None], p[:, :, None]) * mass[:, None, :]).sum(-1)

    def average(self, v):
        return jnp.broadcast_to((self.weight * v).sum(-1, keepdims=True), v.shape)
