"""Which neurons see each other, and with what weight.

The equation of an implicit-bias layer (paper Eq. 4), for each *coupled group* of n neurons:

    z_i = y_i - lam * B_i(z),    B_i(z) = sum_k w_ik sigma(p (z_k - z_i)),    w symmetric, >= 0

A coupling names the axes of y that form a group and the weights w. `bind(shape)` turns it into an operator on
groups laid out as [G, n] (G groups, one for every index of the other axes): see `ibnn_jax.operators`.
"""

from dataclasses import dataclass, field
from functools import partial

import jax
import numpy as np
from jax import Array
from jaxtyping import Float

from ibnn_jax import sigmas
from ibnn_jax.operators import DenseOperator, UniformOperator, WindowOperator
from ibnn_jax.sigmas import Sigma


def _check_axes(axes, ndim, owner):
    if any(not -ndim <= a < ndim for a in axes):
        raise ValueError(
            f"{owner}: axes {axes} do not exist in y of rank {ndim}; give y more axes or name others"
        )
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
            raise ValueError(
                "Uniform: axes is empty; name at least one axis of y to couple, e.g. axes=(-3, -2)"
            )
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
            raise ValueError(
                f"Window: size must be two odd positive integers, so that w is symmetric; got {size}"
            )
        if len(self.axes) != 2:
            raise ValueError(
                f"Window: axes must name two axes (height, width); got {self.axes}"
            )
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "axes", tuple(self.axes))

    def coupled_axes(self, ndim: int) -> tuple[int, ...]:
        return _check_axes(self.axes, ndim, "Window")

    def bind(self, shape: tuple[int, ...]) -> WindowOperator:
        if any(window > image for window, image in zip(self.size, shape)):
            raise ValueError(
                f"Window: size {self.size} is larger than the image {tuple(shape)}"
            )
        return WindowOperator(tuple(shape), self.size, self.sigma)


@partial(
    jax.tree_util.register_dataclass, data_fields=["w"], meta_fields=["sigma", "psd"]
)
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
                raise ValueError(
                    f"Dense: w must be a non-empty square matrix [n, n]; got shape {w.shape}"
                )
            if not np.issubdtype(w.dtype, np.floating):
                w = w.astype(np.result_type(float)) if w.dtype.kind in "iub" else w
            if not np.isfinite(w).all():
                raise ValueError("Dense: w has NaN or infinite entries")
            if (w < 0).any():
                raise ValueError(
                    f"Dense: w must be non-negative; its smallest entry is {w.min()}"
                )
            tolerance = 10 * np.finfo(w.dtype).eps * w.max()
            if abs(w - w.T).max() > tolerance:
                raise ValueError(
                    "Dense: w must be symmetric; use (w + w.T) / 2, or the solution minimises no energy"
                )
            psd = bool(np.linalg.eigvalsh(w).min() >= -tolerance * len(w))
        object.__setattr__(self, "w", w)
        object.__setattr__(self, "sigma", sigma)
        object.__setattr__(self, "psd", psd)

    def coupled_axes(self, ndim: int) -> tuple[int, ...]:
        return _check_axes((-1,), ndim, "Dense")

    def bind(self, shape: tuple[int, ...]) -> DenseOperator:
        if shape != (self.w.shape[0],):
            raise ValueError(
                f"Dense: w is {self.w.shape} but the last axis of y has {shape[0]} neurons"
            )
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
    shape = (
        coupling.w.shape[:1]
        if isinstance(coupling, Dense)
        else (10**9,) * len(coupling.axes)
    )
    return coupling.bind(shape).bound(p)
