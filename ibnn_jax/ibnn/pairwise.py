"""Sums over pairs of neurons, on groups laid out as [G, n].

    B_i(z) = sum_k w_ik sigma(p (z_k - z_i))
    K_ik = w_ik p sigma'(p (z_k - z_i)),    DB = K - diag(K 1)

G groups do not see each other; `ibnn_jax.ibnn.couplings` says which neurons form them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from itertools import repeat
from math import prod
from operator import add

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ibnn_jax.core.batching import product, product_from_left
from ibnn_jax.ibnn.sigmas import Sigma

Pair = Callable[[Array, Array], Array]  # elementwise (z_k - z_i, p) -> value
KEPT = 2**24  # the most pairs of neurons whose kernel is kept as numbers


class Operator(ABC):
    """Pairwise sums over the neurons of each group, on arrays [G, n]."""

    sigma: Sigma
    shape: tuple[int, ...]  # the sizes of the coupled axes; n is their product
    # w is symmetric in the inner product sum_i weight_i a_i b_i
    weight: float | Array = 1.0
    # max_i sum_k w_ik, at most 1 for Uniform and Window
    row_sum: float | Array = 1.0
    # max(0, -smallest eigenvalue of w), or a bound on it
    negative: float | Array = 0.0

    @abstractmethod
    def _pair_sum(self, f: Pair, z, p, v) -> Array:
        """`pair_sum` without its safeguard."""

    def pair_sum(
        self, f: Pair, z: Float[Array, "G n"], p: Float[Array, "G 1"], v=None
    ) -> Float[Array, "G n"]:
        """sum_k w_ik f(z_k - z_i, p) v_k, with v = 1 when None.

        The barrier ties z and p to v: inside a loop over v, XLA would otherwise compute
        the n x n kernel once and keep it. See
        docs/notes/xla.md#pairwise-kernels-and-the-barrier.
        """
        tied = jax.lax.optimization_barrier((z, p) if v is None else (z, p, v))
        return self._pair_sum(f, *tied, *([None] if v is None else []))

    @abstractmethod
    def average(self, v: Float[Array, "G n"]) -> Float[Array, "G n"]:
        """sum_k w_ik v_k / sum_k w_ik, the mean that i sees; v_i where w_i = 0."""

    @property
    def psd(self) -> bool:
        """Whether w is known to be positive semidefinite."""
        return isinstance(self.negative, float) and self.negative == 0

    def bias(self, z, p):
        """B_i(z) = sum_k w_ik sigma(p (z_k - z_i)), [G, n] (Eq. 16)."""
        return self.pair_sum(lambda t, p: self.sigma.value(p * t), z, p)

    def kernel(self, z, p, v=None):
        """(K v)_i with K_ik = w_ik p sigma'(p (z_k - z_i)); v = None gives d = K 1."""
        return self.pair_sum(lambda t, p: self.sigma.derivative(p * t, p), z, p, v)

    def linearised(self, z, p) -> tuple[Float[Array, "G n"], Callable[[Array], Array]]:
        """(d, v -> K v) at z.

        K is kept up to `KEPT` pairs: making it anew takes several times as long as a
        product with it.
        """
        groups = z.shape[0]  # a symbol under jax.export
        few = isinstance(groups, int) and z.size * self.neighbours <= KEPT
        if not few:
            return self.kernel(z, p), lambda v: self.kernel(z, p, v)
        return self._kept(z, p)

    @property
    def neighbours(self) -> int:
        """How many neurons each may see, itself included."""
        return prod(self.shape)

    @abstractmethod
    def _kept(self, z, p) -> tuple[Array, Callable[[Array], Array]]:
        """`linearised` with the numbers of K in memory."""

    def potential(self, z, p) -> Float[Array, "G"]:
        """1/2 sum_ik w_ik S_p(z_k - z_i) with S_p(t) = S(p t) / p, [G] (Eqs. 5, 13)."""

        def primitive(t, p):
            return self.sigma.primitive(p * t) / p

        return 0.5 * self.pair_sum(primitive, z, p).sum(-1)

    def bound(self, p: Array) -> Array:
        """The lam below which the solution is unique; see `uniqueness_bound`."""
        extra = self.negative if self.sigma.positive_definite else self.row_sum
        dtype = jnp.result_type(p)
        if not jnp.issubdtype(dtype, jnp.floating):
            dtype = jnp.result_type(float)
        total = jnp.asarray(self.row_sum + extra, dtype)
        return 1.0 / (self.sigma.max_slope * p * total)


@partial(
    jax.tree_util.register_dataclass, data_fields=[], meta_fields=["shape", "sigma"]
)
@dataclass(frozen=True)
class UniformOperator(Operator):
    """w_ik = 1 / n."""

    shape: tuple[int, ...]
    sigma: Sigma

    def _pair_sum(self, f, z, p, v):
        # XLA fuses this into the reduction.
        terms = f(z[:, None, :] - z[:, :, None], p[:, :, None])
        if v is not None:
            terms = terms * v[:, None, :]
        return terms.mean(-1)

    def _kept(self, z, p):
        kernel = _slopes(self.sigma, z, p) / z.shape[1]
        return kernel.sum(-1), partial(product, kernel)

    def average(self, v):
        return jnp.broadcast_to(v.mean(-1, keepdims=True), v.shape)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[],
    meta_fields=["shape", "size", "sigma"],
)
@dataclass(frozen=True)
class WindowOperator(Operator):
    """w_ik = 1 / prod(size) for k in the window around i, one shift at a time."""

    shape: tuple[int, int]
    size: tuple[int, int]
    sigma: Sigma

    @property
    def negative(self) -> float:  # type: ignore[override]
        """A bound that holds for images of any size."""
        return max(_negative_part(side) for side in self.size)

    def _shifted(self, v):
        """Yield (v shifted by one offset of the window, 1 where that neighbour is
        inside the image), both [G, H, W].
        """
        (height, width), (rows, cols) = self.shape, self.size
        pad = ((0, 0), (rows // 2,) * 2, (cols // 2,) * 2)
        padded = jnp.pad(v.reshape(-1, height, width), pad)
        inside = np.pad(np.ones((1, height, width), bool), pad)
        for a in range(rows):
            for b in range(cols):
                window = np.s_[:, a : a + height, b : b + width]
                yield padded[window], inside[window]

    def _pair_sum(self, f, z, p, v):
        centre = z.reshape(-1, *self.shape)
        weights = repeat(1) if v is None else (w for w, _ in self._shifted(v))
        total = jnp.zeros_like(centre)
        for (neighbour, inside), weight in zip(self._shifted(z), weights):
            total += jnp.where(inside, f(neighbour - centre, p[:, :, None]) * weight, 0)
        return total.reshape(z.shape) / prod(self.size)

    @property
    def neighbours(self):
        return prod(self.size)

    def _kept(self, z, p):
        centre, slopes = z.reshape(-1, *self.shape), p[:, :, None] / prod(self.size)
        kernels = [
            jnp.where(
                inside,
                self.sigma.derivative(p[:, :, None] * (neighbour - centre), slopes),
                0,
            )
            for neighbour, inside in self._shifted(z)
        ]

        def apply(v):
            pairs = zip(kernels, self._shifted(v))
            terms = (kernel * neighbour for kernel, (neighbour, _) in pairs)
            return reduce(add, terms).reshape(v.shape)

        return reduce(add, kernels).reshape(z.shape), apply

    def average(self, v):
        total = reduce(add, (neighbour for neighbour, _ in self._shifted(v)))
        count = sum(
            inside.astype(v.dtype)
            for _, inside in self._shifted(jnp.ones((1, v.shape[1])))
        )
        return (total / count).reshape(v.shape).astype(v.dtype)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["w", "negative"],
    meta_fields=["shape", "sigma", "known_psd"],
)
@dataclass(frozen=True)
class DenseOperator(Operator):
    """w_ik as given; negative: see `Operator`.

    known_psd: `psd`, which has to be known where the program is made, when negative may
    be a number of the program.
    """

    w: Float[Array | np.ndarray, "n n"]
    shape: tuple[int, ...]
    sigma: Sigma
    known_psd: bool
    negative: float | Array

    @property
    def psd(self):
        return self.known_psd

    @property
    def row_sum(self) -> Array:  # type: ignore[override]
        return self.w.sum(-1).max()

    def _pair_sum(self, f, z, p, v):
        terms = self.w.astype(z.dtype)[None] * f(
            z[:, None, :] - z[:, :, None], p[:, :, None]
        )
        if v is not None:
            terms = terms * v[:, None, :]
        return terms.sum(-1)

    def _kept(self, z, p):
        kernel = _slopes(self.sigma, z, p) * self.w.astype(z.dtype)[None]
        return kernel.sum(-1), partial(product, kernel)

    def average(self, v):
        w = self.w.astype(v.dtype)
        total = w.sum(-1)[None]
        return jnp.where(total > 0, v @ w.T / jnp.where(total > 0, total, 1), v)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["weight"],
    meta_fields=["shape", "sigma", "product_from_left"],
)
@dataclass(frozen=True)
class PointsOperator(Operator):
    """A few points of mass weight_k that stand for many neurons: w_ik = weight_k.

    Symmetric in the inner product by these weights. product_from_left: of a vector and
    a matrix in every group; a GPU kernel has its own.
    """

    shape: tuple[int, ...]
    sigma: Sigma
    weight: Float[Array, "G k"]
    product_from_left: Callable[[Array, Array], Array] = product_from_left

    def pair_sum(self, f, z, p, v=None):
        # Few enough to keep what does not change, here and in `linearised`.
        return self._pair_sum(f, z, p, v)

    def _pair_sum(self, f, z, p, v):
        mass = self.weight if v is None else self.weight * v
        # By source and target: a GPU kernel then sums within each of its threads.
        pairs = z[:, :, None] - z[:, None, :]
        return self.product_from_left(mass, f(pairs, p[:, :, None]))

    def average(self, v):
        return jnp.broadcast_to((self.weight * v).sum(-1, keepdims=True), v.shape)

    def linearised(self, z, p):
        return self._kept(z, p)

    def _kept(self, z, p):
        kernel = _slopes(self.sigma, z, p)

        def apply(v):
            return self.product_from_left(self.weight * v, kernel)  # it is symmetric

        return apply(jnp.ones_like(z)), apply


def _slopes(
    sigma: Sigma, z: Float[Array, "G n"], p: Float[Array, "G 1"]
) -> Float[Array, "G n n"]:
    """p sigma'(p (z_k - z_i))."""
    return sigma.derivative(
        p[:, :, None] * (z[:, None, :] - z[:, :, None]), p[:, :, None]
    )


@lru_cache
def _negative_part(side: int) -> float:
    """max(0, -smallest eigenvalue) of a window over one axis, however long:

    -min_theta (1 + 2 sum_j cos(j theta)) / side, j to (side - 1) / 2.
    """
    theta = np.linspace(0, np.pi, 20_001)[:, None]
    waves = np.cos(np.arange(1, side // 2 + 1) * theta)
    symbol = (1 + 2 * waves.sum(1)) / side
    # The grid misses the least value by less than 1e-8 side^2.
    return max(0.0, -float(symbol.min()) + (1e-8 * side**2 if side > 3 else 0.0))
