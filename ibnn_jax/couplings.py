"""Which neurons see each other, and with what weight.

The equation of an implicit-bias layer (paper Eq. 4), for each *coupled group* of n neurons:

    z_i = y_i - lam * B_i(z),    B_i(z) = sum_k w_ik sigma(p (z_k - z_i)),    w symmetric, >= 0

A coupling names the axes of y that form a group and the weights w. `bind(shape)` turns it into an operator on
groups laid out as [G, n] (G groups, one for every index of the other axes), the form that every solver uses.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ibnn_jax import sigmas
from ibnn_jax.sigmas import Sigma

Pair = Callable[[Array, Array], Array]  # elementwise (z_k - z_i, p) -> value
KEPT = 2**24  # the most pairs of neurons whose kernel is kept as numbers


class Operator(ABC):
    """Pairwise sums over the neurons of each group, on arrays [G, n]."""

    sigma: Sigma
    shape: tuple[int, ...]  # the sizes of the coupled axes; n is their product
    weight: float | Array = 1.0  # w is symmetric in the inner product sum_i weight_i a_i b_i

    @abstractmethod
    def _pair_sum(self, f: Pair, z, p, v):
        """`pair_sum` without its safeguard."""

    def pair_sum(self, f: Pair, z: Float[Array, "G n"], p: Float[Array, "G 1"], v=None) -> Float[Array, "G n"]:
        """sum_k w_ik f(z_k - z_i, p) v_k, with v = 1 when None.

        The barrier ties z and p to v: inside a loop over v, XLA would otherwise compute the n x n kernel once and keep it.
        """
        tied = jax.lax.optimization_barrier((z, p) if v is None else (z, p, v))
        return self._pair_sum(f, *tied, *([None] if v is None else []))

    @abstractmethod
    def average(self, v: Float[Array, "G n"]) -> Float[Array, "G n"]:
        """sum_k w_ik v_k / sum_k w_ik: what neuron i sees of its neighbours (v_i itself where w_i = 0)."""

    @property
    @abstractmethod
    def row_sum(self) -> float | Array:
        """max_i sum_k w_ik, at most 1 for Uniform and Window."""

    @property
    @abstractmethod
    def psd(self) -> bool:
        """True if w is known to be positive semidefinite."""

    def bias(self, z, p):
        """B_i(z) = sum_k w_ik sigma(p (z_k - z_i)), [G, n] (Eq. 16)."""
        return self.pair_sum(lambda t, p: self.sigma.value(p * t), z, p)

    def kernel(self, z, p, v=None):
        """(K v)_i with K_ik = w_ik p sigma'(p (z_k - z_i)), [G, n]; v = None gives d = K 1."""
        return self.pair_sum(lambda t, p: self.sigma.derivative(p * t, p), z, p, v)

    def linearised(self, z, p) -> tuple[Float[Array, "G n"], Callable[[Array], Array]]:
        """(d, v -> K v) at z; K is kept up to `KEPT` pairs: making it anew takes several times as long as a product with it."""
        if z.size * self.neighbours > KEPT:
            return self.kernel(z, p), lambda v: self.kernel(z, p, v)
        return self._kept(z, p)

    @property
    def neighbours(self) -> int:
        """How many neurons each may see, itself included."""
        return prod(self.shape)

    @abstractmethod
    def _kept(self, z, p):
        """`linearised` with the numbers of K in memory."""

    def potential(self, z, p) -> Float[Array, "G"]:
        """1/2 sum_ik w_ik S_p(z_k - z_i) with S_p(t) = S(p t) / p, [G] (Eqs. 5, 13)."""
        return 0.5 * self.pair_sum(lambda t, p: self.sigma.primitive(p * t) / p, z, p).sum(-1)

    def bound(self, p: Array) -> Array:
        """The lam below which the solution is unique: 1 / (c p max_k sum w), c = 1 or 2 (see `uniqueness_bound`)."""
        factor = 1.0 if self.psd and self.sigma.positive_definite else 2.0
        return 1.0 / (factor * self.sigma.max_slope * p * self.row_sum)


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["shape", "sigma"])
@dataclass(frozen=True)
class UniformOperator(Operator):
    shape: tuple[int, ...]
    sigma: Sigma
    row_sum = 1.0
    psd = True

    def _pair_sum(self, f, z, p, v):
        terms = f(z[:, None, :] - z[:, :, None], p[:, :, None])  # XLA fuses this into the reduction
        if v is not None:
            terms = terms * v[:, None, :]
        return terms.mean(-1)

    def _kept(self, z, p):
        kernel = _slopes(self.sigma, z, p) / z.shape[1]
        return kernel.sum(-1), partial(_apply, kernel)

    def average(self, v):
        return jnp.broadcast_to(v.mean(-1, keepdims=True), v.shape)


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["shape", "size", "sigma"])
@dataclass(frozen=True)
class WindowOperator(Operator):
    shape: tuple[int, int]
    size: tuple[int, int]
    sigma: Sigma
    row_sum = 1.0
    psd = False

    def _neighbours(self, v):
        """Yield (v shifted by one offset of the window, 1 where that neighbour is inside the image), both [G, H, W]."""
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
        weights = self._neighbours(jnp.ones_like(z) if v is None else v)
        total = jnp.zeros_like(centre)
        for (neighbour, inside), (weight, _) in zip(self._neighbours(z), weights):
            total += jnp.where(inside, f(neighbour - centre, p[:, :, None]) * weight, 0)
        return total.reshape(z.shape) / prod(self.size)

    @property
    def neighbours(self):
        return prod(self.size)

    def _kept(self, z, p):
        centre, slopes = z.reshape(-1, *self.shape), p[:, :, None] / prod(self.size)
        kernels = [
            jnp.where(inside, self.sigma.derivative(p[:, :, None] * (neighbour - centre), slopes), 0)
            for neighbour, inside in self._neighbours(z)
        ]
        apply = lambda v: sum(kernel * neighbour for kernel, (neighbour, _) in zip(kernels, self._neighbours(v))).reshape(v.shape)
        return sum(kernels).reshape(z.shape), apply

    def average(self, v):
        total = sum(neighbour for neighbour, _ in self._neighbours(v))
        count = sum(inside.astype(np.int32) for _, inside in self._neighbours(jnp.ones((1, v.shape[1]))))
        return (total / count).reshape(v.shape).astype(v.dtype)


@partial(jax.tree_util.register_dataclass, data_fields=["w"], meta_fields=["shape", "sigma", "psd"])
@dataclass(frozen=True)
class DenseOperator(Operator):
    w: Float[Array, "n n"]
    shape: tuple[int, ...]
    sigma: Sigma
    psd: bool = False

    @property
    def row_sum(self):
        return self.w.sum(-1).max()

    def _pair_sum(self, f, z, p, v):
        terms = self.w.astype(z.dtype)[None] * f(z[:, None, :] - z[:, :, None], p[:, :, None])
        if v is not None:
            terms = terms * v[:, None, :]
        return terms.sum(-1)

    def _kept(self, z, p):
        kernel = self.w.astype(z.dtype)[None] * _slopes(self.sigma, z, p)
        return kernel.sum(-1), partial(_apply, kernel)

    def average(self, v):
        w = self.w.astype(v.dtype)
        total = w.sum(-1)[None]
        return jnp.where(total > 0, v @ w.T / jnp.where(total > 0, total, 1), v)


@partial(jax.tree_util.register_dataclass, data_fields=["weight"], meta_fields=["shape", "sigma"])
@dataclass(frozen=True)
class PointsOperator(Operator):
    """A few points of mass weight_k that stand for many neurons: w_ik = weight_k, symmetric in the inner product by it."""

    shape: tuple[int, ...]
    sigma: Sigma
    weight: Float[Array, "G k"]
    row_sum = 1.0
    psd = True

    def pair_sum(self, f, z, p, v=None):
        return self._pair_sum(f, z, p, v)  # few enough to keep what does not change, here and in `linearised`

    def _pair_sum(self, f, z, p, v):
        mass = self.weight if v is None else self.weight * v
        return _apply(f(z[:, None, :] - z[:, :, None], p[:, :, None]), mass)

    def average(self, v):
        return jnp.broadcast_to((self.weight * v).sum(-1, keepdims=True), v.shape)

    def linearised(self, z, p):
        return self._kept(z, p)

    def _kept(self, z, p):
        kernel = _slopes(self.sigma, z, p)
        apply = lambda v: _apply(kernel, self.weight * v)
        return apply(jnp.ones_like(z)), apply


def _slopes(sigma: Sigma, z: Float[Array, "G n"], p: Float[Array, "G 1"]) -> Float[Array, "G n n"]:
    """p sigma'(p (z_k - z_i))."""
    return sigma.derivative(p[:, :, None] * (z[:, None, :] - z[:, :, None]), p[:, :, None])


def _apply(matrix: Float[Array, "G i k"], v: Float[Array, "G k"]) -> Float[Array, "G i"]:
    """matrix v in every group: on CPUs a product, which is faster by a quarter; `ibnn_jax.kernels` know sums only."""
    if jax.default_backend() == "gpu":
        return (matrix * v[:, None, :]).sum(-1)
    return jnp.einsum("gik,gk->gi", matrix, v)


def _check_axes(axes, ndim, owner):
    if any(not -ndim <= a < ndim for a in axes):
        raise ValueError(f"{owner}: axes {axes} do not exist in y of rank {ndim}; give y more axes or name others")
    axes = tuple(a % ndim for a in axes)
    if len(set(axes)) != len(axes):
        raise ValueError(f"{owner}: axes {axes} name the same axis of y twice")
    return axes


@dataclass(frozen=True)
class Uniform:
    """w_ik = 1 / n over the named axes of y; every other axis is a batch axis.

    For channels-last maps y [N, H, W, C]: axes (-3, -2) couple the pixels inside each channel (the paper's
    experiments), (-3, -2, -1) the whole layer, (-1,) the channels at each pixel.

    Raises:
        ValueError: no axes, an axis that y lacks, or the same axis twice.
    """

    axes: tuple[int, ...] = (-3, -2)
    sigma: Sigma = sigmas.tanh

    def __post_init__(self):
        axes = (self.axes,) if isinstance(self.axes, int) else tuple(self.axes)
        if not axes:
            raise ValueError("Uniform: axes is empty; name at least one axis of y to couple, e.g. axes=(-3, -2)")
        object.__setattr__(self, "axes", axes)

    def coupled_axes(self, ndim: int) -> tuple[int, ...]:
        return _check_axes(self.axes, ndim, "Uniform")

    def bind(self, shape: tuple[int, ...]) -> UniformOperator:
        return UniformOperator(shape, self.sigma)


@dataclass(frozen=True)
class Window:
    """A local window over two axes of y: w_ik = 1 / prod(size) if k is in the window around i, and 0 outside the image.

    Near the border a neuron sees fewer neighbours, each with the same weight, so rows sum to less than 1 there.

    Args:
        size: rows and columns of the window, odd (an even window would make w asymmetric).
        axes: the two spatial axes, height then width; the default fits channels-last maps [..., H, W, C].

    Raises:
        ValueError: even or non-positive sizes, a window larger than the image, axes that y lacks.
    """

    size: tuple[int, int] = (5, 5)
    axes: tuple[int, int] = (-3, -2)
    sigma: Sigma = sigmas.tanh

    def __post_init__(self):
        size = (self.size,) * 2 if isinstance(self.size, int) else tuple(self.size)
        if len(size) != 2 or any(s < 1 or s % 2 == 0 for s in size):
            raise ValueError(f"Window: size must be two odd positive integers, so that w is symmetric; got {size}")
        if len(self.axes) != 2:
            raise ValueError(f"Window: axes must name two axes (height, width); got {self.axes}")
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "axes", tuple(self.axes))

    def coupled_axes(self, ndim: int) -> tuple[int, ...]:
        return _check_axes(self.axes, ndim, "Window")

    def bind(self, shape: tuple[int, ...]) -> WindowOperator:
        if any(window > image for window, image in zip(self.size, shape)):
            raise ValueError(f"Window: size {self.size} is larger than the image {tuple(shape)}")
        return WindowOperator(tuple(shape), self.size, self.sigma)


@partial(jax.tree_util.register_dataclass, data_fields=["w"], meta_fields=["sigma", "psd"])
@dataclass(frozen=True, init=False, eq=False)
class Dense:
    """Any symmetric, non-negative w [n, n] over the last axis of y; differentiable in w.

    Checked when built from concrete values; a traced w (under jit or grad) is taken as it is.

    Raises:
        ValueError: w is not square, not symmetric, negative somewhere, not finite, or empty.
    """

    w: Float[Array, "n n"]
    sigma: Sigma = sigmas.tanh
    psd: bool = field(default=False)

    def __init__(self, w, sigma: Sigma = sigmas.tanh):
        psd = False
        if not isinstance(w, jax.core.Tracer):
            w = np.asarray(w)
            if w.ndim != 2 or w.shape[0] != w.shape[1] or w.size == 0:
                raise ValueError(f"Dense: w must be a non-empty square matrix [n, n]; got shape {w.shape}")
            if not np.issubdtype(w.dtype, np.floating):
                w = w.astype(np.result_type(float)) if w.dtype.kind in "iub" else w
            if not np.isfinite(w).all():
                raise ValueError("Dense: w has NaN or infinite entries")
            if (w < 0).any():
                raise ValueError(f"Dense: w must be non-negative; its smallest entry is {w.min()}")
            tolerance = 10 * np.finfo(w.dtype).eps * w.max()
            if abs(w - w.T).max() > tolerance:
                raise ValueError("Dense: w must be symmetric; use (w + w.T) / 2, or the solution minimises no energy")
            psd = bool(np.linalg.eigvalsh(w).min() >= -tolerance * len(w))
        object.__setattr__(self, "w", w)
        object.__setattr__(self, "sigma", sigma)
        object.__setattr__(self, "psd", psd)

    def coupled_axes(self, ndim: int) -> tuple[int, ...]:
        return _check_axes((-1,), ndim, "Dense")

    def bind(self, shape: tuple[int, ...]) -> DenseOperator:
        if shape != (self.w.shape[0],):
            raise ValueError(f"Dense: w is {self.w.shape} but the last axis of y has {shape[0]} neurons")
        return DenseOperator(self.w, shape, self.sigma, self.psd)


Coupling = Uniform | Window | Dense


def uniqueness_bound(p, coupling: Coupling):
    """The lam below which Eq. (4) has exactly one solution, for slope p (scalar or array, same shape returned).

    The paper proves 1 / (2 p) for sigma = tanh(p t) and normalised rows (Corollary 3.1). If w is positive
    semidefinite and sigma' a positive definite function, as for Uniform with tanh, the bound is 1 / p: the matrix
    K_ik = w_ik p sigma'(p (z_k - z_i)) is then a Schur product of positive semidefinite matrices, hence
    -DB = diag(d) - K <= diag(d) <= p max_i sum_k w_ik, and the Hessian of the energy I + lam DB stays
    positive definite for every lam < 1 / p.
    """
    shape = coupling.w.shape[:1] if isinstance(coupling, Dense) else (10**9,) * len(coupling.axes)
    return coupling.bind(shape).bound(p)
