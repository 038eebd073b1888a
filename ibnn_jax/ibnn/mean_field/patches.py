"""Sums of tanh between neurons wherever they lie, to seven digits.

The line of x = p z is cut into cells of width 1. Within a cell tanh(x - t) is all but a
polynomial of degree 9 in x and in t, so the neurons of a cell act through charges at
`NODES` Chebyshev nodes, and are read off there (kernel interpolation, as in the
black-box fast multipole method: Fong and Darve, J. Comput. Phys. 228, 2009).

A patch is a cell that holds neurons: there is at most one per neuron, however far apart
these are. Patches are numbered from left to right, so those within `NEAR` cells of one
are among the `NEAR` numbers on either side of its own. To those beyond, tanh is its
sign and sech^2 is 0.

This takes several times as long as a `Grid`, and is for what no grid serves.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from ibnn_jax.ibnn.sigmas import tanh

NODES = 10  # of a cell; each one more takes six times off the error
NEAR = 8  # tanh(8) is 1 to seven digits
SAMPLES = 5  # of a cell, its ends among them
EMPTY = 1e30  # where patches lie that hold no neuron
TOGETHER = 32  # patches whose sums are taken at a time: their matrices stay in cache
HIGHEST = jax.lax.Precision.HIGHEST

_ANGLES = (np.arange(NODES) + 0.5) * np.pi / NODES
# A function on the cell is sum_j c_j T_j(2u), u from the middle of the cell, where
# c = _SERIES f for its values f at the nodes. The charges there are m _SERIES for the
# moments m_j = sum_k v_k T_j(2 u_k).
_SERIES = np.cos(np.arange(NODES)[:, None] * _ANGLES) * 2 / NODES
_SERIES[0] /= 2


class Charges(NamedTuple):
    """What acts for the neurons: charges at the nodes of patches, and where these lie.

    Before and after the patches there are `NEAR` empty ones.
    """

    values: Float[Array, "G most+2near nodes"]
    cell: Float[Array, "G most+2near"]
    count: Int[Array, ""]  # patches of the group that has most


@dataclass(frozen=True)
class Patches:
    """As a `Grid`, for groups whose neurons may lie anywhere.

    Args:
        most: patches of a group. One that needs more gets NaN.
    """

    most: int

    reach: ClassVar[float] = math.inf
    # Of what a neuron adds to G and to its slope, at most: tests/ibnn/mean_field
    error: ClassVar[float] = 4e-8
    slope_error: ClassVar[float] = 3e-7

    def run(self, f: Callable, *arrays: Array):
        """f(self, *arrays)."""
        return f(self, *arrays)

    def place(self, x: Float[Array, "G n"]) -> "Place":
        """Where the neurons lie."""
        (groups, n), dtype = x.shape, x.dtype
        index = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        x, order = jax.lax.sort((x, index), num_keys=1)
        cell = jnp.floor(x)
        opens = jnp.pad(cell[:, 1:] > cell[:, :-1], ((0, 0), (1, 0)))
        patch = jnp.cumsum(opens, axis=1, dtype=jnp.int32)
        row = jnp.arange(groups, dtype=jnp.int32)[:, None]
        # From the neurons, so that it is sharded and varies over a mesh as they do.
        blank = jnp.broadcast_to(0 * order[:, :1], (groups, self.most + 1))
        first = (blank + n).at[row, patch].min(index, mode="drop")
        nowhere = blank.astype(dtype) + EMPTY
        lies = nowhere.at[row, patch].min(cell, mode="drop")
        return Place(order, patch, x - cell - 0.5, first, lies[:, : self.most], self)

    def bias(self, charges: Charges) -> Float[Array, "G most nodes"]:
        """Coefficients of G(t) = sum_k v_k tanh(x_k - t) for the charges of v."""
        total = charges.values.sum(-1)
        upto = jnp.cumsum(total, axis=1)
        # To patch i act those before number i - NEAR and after i + NEAR.
        below = jnp.pad(upto, ((0, 0), (1, 0)))[:, : self.most]
        above = upto[:, -1:] - upto[:, 2 * NEAR :]
        return self._sums(charges, tanh.value, above - below)

    def slope(self, charges: Charges) -> Float[Array, "G most nodes"]:
        """Coefficients of sum_k v_k sech^2(x_k - t)."""
        return self._sums(charges, tanh.derivative)

    def moment(self, charges: Charges) -> Float[Array, "G most nodes"]:
        """Coefficients of sum_k v_k (x_k - t) sech^2(x_k - t)."""
        return self._sums(charges, lambda t: t * tanh.derivative(t))

    def _sums(self, charges: Charges, kernel: Callable, far=None):
        """Coefficients of sum_k v_k kernel(x_k - t) over near patches, plus far."""
        nodes = jnp.asarray(np.cos(_ANGLES) / 2, charges.values.dtype)
        between = nodes[:, None] - nodes  # source less target
        together = min(TOGETHER, self.most)

        width = together + 2 * NEAR

        def add(start, out):
            source, values = (
                jax.lax.dynamic_slice_in_dim(x, start, width, axis=1)
                for x in (charges.cell, charges.values)
            )
            near = np.arange(together)[:, None] + np.arange(2 * NEAR + 1)
            away = source[:, near] - source[:, NEAR:-NEAR, None]
            act = kernel(away[..., None, None] + between)
            new = jnp.einsum("gbks,gbkst->gbt", values[:, near], act, precision=HIGHEST)
            return jax.lax.dynamic_update_slice_in_dim(out, new, start, axis=1)

        def body(state):
            k, out = state
            start = jnp.minimum(k * together, self.most - together)
            return k + 1, add(start, out)

        k, out = 0 * charges.count, 0 * charges.values[:, 2 * NEAR :]
        steps = -(-charges.count // together)
        _, out = jax.lax.while_loop(lambda s: s[0] < steps, body, (k, out))
        if far is not None:
            out = out + far[..., None]
        series = jnp.asarray(_SERIES.T, out.dtype)
        return jnp.matmul(out, series, precision=HIGHEST)


@dataclass(frozen=True)
class Place:
    """Neurons in their patches, in ascending order."""

    order: Int[Array, "G n"]  # which neuron each one is in the group
    patch: Int[Array, "G n"]
    u: Float[Array, "G n"]  # from the middle of the cell
    first: Int[Array, "G most+1"]  # the place of the first neuron of each patch
    cell: Float[Array, "G most"]  # of each patch
    patches: Patches

    def charges(self, v: Float[Array, "G n"] | None = None) -> Charges:
        """Those of v / n; v = 1 when None."""
        share = 1 / self.u.shape[1]
        if v is not None:
            share = share * jnp.take_along_axis(v, self.order, axis=1)
        moments = [self._over_patches(share * t) for t in self._polynomials()]
        series = jnp.asarray(_SERIES, self.u.dtype)
        values = jnp.matmul(jnp.stack(moments, -1), series, precision=HIGHEST)
        ends = ((0, 0), (NEAR, NEAR))
        cell = jnp.pad(self.cell, ends, constant_values=EMPTY)
        count = jnp.minimum(self.patch.max() + 1, self.patches.most)
        return Charges(jnp.pad(values, (*ends, (0, 0))), cell, count)

    def read(self, *coefficients: Float[Array, "G most nodes"]) -> tuple[Array, ...]:
        """The functions of these coefficients at the neurons."""
        return tuple(self._read(c) for c in coefficients)

    def read_with_slope(
        self, coefficients: Float[Array, "G most nodes"]
    ) -> tuple[Float[Array, "G n"], Float[Array, "G n"]]:
        """The function of these coefficients and its derivative at the neurons."""
        derivative = np.zeros((NODES, NODES))
        derivative[:, :-1] = 2 * np.polynomial.chebyshev.chebder(np.eye(NODES)).T
        derivative = jnp.asarray(derivative, coefficients.dtype)
        slopes = jnp.matmul(coefficients, derivative, precision=HIGHEST)
        return self._read(coefficients), self._read(slopes)

    def samples(
        self, bias: Float[Array, "G most nodes"]
    ) -> tuple[Float[Array, "G k"], Float[Array, "G k"]]:
        """(t from left to right, G there) for the coefficients of G, in every patch and
        in the gaps around it.

        Beside a patch tanh of its neurons nears their sign like exp(-2 t), so of a gap
        two places do.
        """
        dtype, n, none = bias.dtype, self.u.shape[1], (0, 0)
        u = np.linspace(-0.5, 0.5, SAMPLES)
        at_u = np.polynomial.chebyshev.chebvander(2 * u, NODES - 1).T
        values = jnp.matmul(bias, jnp.asarray(at_u, dtype), precision=HIGHEST)
        t = self.cell[..., None] + jnp.asarray(u + 0.5, dtype)
        # With one more patch at each end, infinitely far away
        ends, places = (none, (1, 1), none), (none, (-EMPTY, EMPTY), none)
        values, t = jnp.pad(values, ends), jnp.pad(t, ends, constant_values=places)
        left, right = t[:, :-1, -1:], t[:, 1:, :1]
        step = jnp.minimum((right - left) / 3, 1.5)
        signs = 1 - 2 * jnp.asarray(self.first, dtype)[..., None] / n
        reach = jnp.concatenate([values[:, :-1, -1:], values[:, 1:, :1]], -1) - signs
        in_gap = signs + reach * jnp.exp(-2 * step)
        t = jnp.concatenate([left + step, right - step, t[:, 1:]], -1)
        values = jnp.concatenate([in_gap, values[:, 1:]], -1)
        return t.reshape(len(t), -1), values.reshape(len(t), -1)

    def _read(self, coefficients):
        row = jnp.arange(len(self.u), dtype=jnp.int32)[:, None]
        taken = coefficients.at[row, self.patch].get(mode="fill")  # NaN past the last
        value = (taken * jnp.stack(self._polynomials(), -1)).sum(-1)
        return (0 * value).at[row, self.order].set(value, unique_indices=True)

    def _polynomials(self) -> list[Float[Array, "G n"]]:
        """T_j(2u) at the neurons."""
        x = 2 * self.u
        polynomials = [jnp.ones_like(x), x]
        while len(polynomials) < NODES:
            polynomials.append(2 * x * polynomials[-1] - polynomials[-2])
        return polynomials

    def _over_patches(self, v: Float[Array, "G n"]) -> Float[Array, "G most"]:
        """The sums of v over the neurons of each patch.

        As differences of running sums, which are sums of sums: thousands of equal
        numbers, added one by one, would always round to the same side.
        """
        upto = jnp.pad(jnp.cumsum(v, axis=1), ((0, 0), (1, 0)))
        return jnp.diff(jnp.take_along_axis(upto, self.first, axis=1), axis=1)
