"""Equally spaced nodes that stand for many neurons: interpolation, its transpose, and sums over nodes."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
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


class Place(NamedTuple):
    """Where n points lie among the nodes: the cell's left node, and the fraction of the cell to its right."""

    cell: Array
    u: Float[Array, "G n"]
    grid: Grid

    def _gather(self, table, offset):
        return jnp.take_along_axis(table, self.cell + offset, axis=1, mode="promise_in_bounds")

    def linear(self, values: Float[Array, "G m"]) -> Float[Array, "G n"]:
        return (1 - self.u) * self._gather(values, 0) + self.u * self._gather(values, 1)

    def hermite(self, values: Float[Array, "G m"], slopes: Float[Array, "G m"]):
        """(f, f') at the points, from f and f' at the nodes."""
        h, u = self.grid.step, self.u
        f0, f1 = self._gather(values, 0), self._gather(values, 1)
        g0, g1 = h * self._gather(slopes, 0), h * self._gather(slopes, 1)
        rise = f1 - f0
        a, b = g0 - rise, rise - g1
        f = f0 + u * (rise + (1 - u) * ((1 - u) * a + u * b))
        slope = rise + (1 - 2 * u) * ((1 - u) * a + u * b) + u * (1 - u) * (b - a)
        return f, slope / h

    def spread_linear(self, v: Float[Array, "G n"]) -> Float[Array, "G m"]:
        """sum_k v_k g(x_k) = sum_j rho_j g(t_j), exact for linear g: the transpose of `linear`."""
        return self._scatter([(0, (1 - self.u) * v), (1, self.u * v)])

    def spread(self, v: Float[Array, "G n"] | float) -> tuple[Array, Array]:
        """(rho, mu) with sum_k v_k g(x_k) = sum_j rho_j g(t_j) + mu_j g'(t_j), exact for cubic g: transposed `hermite`."""
        u, w = self.u, 1 - self.u
        bump = u * w * v
        right = (u * u * (3 - 2 * u)) * v
        rho = self._scatter([(0, v - right), (1, right)])
        mu = self._scatter([(0, bump * w), (1, -bump * u)])
        return rho, self.grid.step * mu

    def _scatter(self, parts):
        rows = jnp.arange(len(self.cell))[:, None]
        total = jnp.zeros((len(self.cell), self.grid.size), self.u.dtype)
        for offset, v in parts:
            total = total.at[rows, self.cell + offset].add(v, mode="promise_in_bounds")
        return total


@partial(jax.tree_util.register_dataclass, data_fields=["weight"], meta_fields=["shape", "sigma"])
@dataclass(frozen=True)
class NodeOperator(Operator):
    """Pairwise sums over m nodes of mass rho: w_jl = rho_l, symmetric in the inner product that rho defines."""

    shape: tuple[int, ...]
    sigma: Sigma
    weight: Float[Array, "G m"]
    row_sum = 1.0
    psd = True

    def pair_sum(self, f, z, p, v=None):
        mass = self.weight if v is None else self.weight * v
        return (f(z[:, None, :] - z[:, :, None], p[:, :, None]) * mass[:, None, :]).sum(-1)

    def average(self, v):
        return jnp.broadcast_to((self.weight * v).sum(-1, keepdims=True), v.shape)
