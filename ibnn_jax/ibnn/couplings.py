"""Which neurons see each other, and with what weight.

The equation of an implicit-bias layer (paper Eq. 4), for each *coupled group* of n
neurons:

    z_i = y_i - lam * B_i(z)
    B_i(z) = sum_k w_ik sigma(p (z_k - z_i)),    w symmetric, >= 0

A coupling names the axes of y that form a group and the weights w. `bind(shape)` turns
it into an operator on groups laid out as [G, n] (G groups, one for every index of the
other axes): see `ibnn_jax.ibnn.pairwise`.
"""

import operator
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Float

from ibnn_jax.core.options import is_known, real_array, settle
from ibnn_jax.ibnn import sigmas
from ibnn_jax.ibnn.pairwise import (
    DenseOperator,
    UniformOperator,
    WindowOperator,
)
from ibnn_jax.ibnn.sigmas import Sigma

# Largest |w - w^T|, over the largest entry, of a w that cannot be refused: gradients,
# which take w for symmetric, err by about as much
ASYMMETRY = 1e-3


@jax.tree_util.register_static
@dataclass(frozen=True)
class Uniform:
    """w_ik = 1 / n over the named axes of y; every other axis is a batch axis.

    For channels-last maps y [N, H, W, C]: axes (-3, -2) couple the pixels inside each
    channel (the paper's experiments), (-3, -2, -1) the whole layer, (-1,) the channels
    at each pixel.

    Args:
        axes: the coupled axes of y, as integers.
        sigma: the nonlinearity, `ibnn_jax.tanh` or one of your own.

    Raises:
        ValueError: no axes, axes that are not integers, an axis that y lacks, or the
            same axis twice.
    """

    axes: tuple[int, ...] = (-3, -2)
    sigma: Sigma = sigmas.tanh

    def __post_init__(self):
        axes = _distinct("Uniform", self.axes)
        _check_sigma("Uniform", self.sigma)
        if not axes:
            raise ValueError(
                "Uniform: axes is empty; name at least one axis of y to couple, "
                "e.g. axes=(-3, -2)"
            )
        settle(self, axes=axes)

    def coupled_axes(self, ndim: int) -> tuple[int, ...]:
        """The axes of a y of rank ndim that form a group, counted from 0."""
        return _check_axes(self.axes, ndim, "Uniform")

    def bind(self, shape: tuple[int, ...]) -> UniformOperator:
        """The sums over pairs in a group whose coupled axes have these sizes."""
        return UniformOperator(shape, self.sigma)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Window:
    """A local window over two axes of y.

    w_ik = 1 / prod(size) if k is in the window around i, and 0 outside the image. Near
    the border a neuron sees fewer neighbours, each with the same weight, so rows sum to
    less than 1 there.

    Args:
        size: rows and columns of the window, odd (an even window would make w
            asymmetric).
        axes: the two spatial axes, height then width; the default fits channels-last
            maps [..., H, W, C].
        sigma: the nonlinearity, as in `Uniform`.

    Raises:
        ValueError: even or non-positive sizes, a window larger than the image, axes
            that y lacks.
    """

    size: tuple[int, int] = (5, 5)
    axes: tuple[int, int] = (-3, -2)
    sigma: Sigma = sigmas.tanh

    def __post_init__(self):
        size = _integers("Window", "size", self.size)
        size = size * 2 if len(size) == 1 else size
        if len(size) != 2 or any(s < 1 or s % 2 == 0 for s in size):
            raise ValueError(
                "Window: size must be two odd positive integers, so that w is "
                f"symmetric; got {size}"
            )
        axes = _distinct("Window", self.axes)
        _check_sigma("Window", self.sigma)
        if len(axes) != 2:
            raise ValueError(
                f"Window: axes must name two axes (height, width); got {axes}"
            )
        settle(self, size=size, axes=axes)

    def coupled_axes(self, ndim: int) -> tuple[int, ...]:
        """As `Uniform.coupled_axes`."""
        return _check_axes(self.axes, ndim, "Window")

    def bind(self, shape: tuple[int, ...]) -> WindowOperator:
        """As `Uniform.bind`."""
        if any(window > image for window, image in zip(self.size, shape)):
            raise ValueError(
                f"Window: size {self.size} is larger than the image {tuple(shape)}"
            )
        return WindowOperator((shape[0], shape[1]), self.size, self.sigma)


@jax.tree_util.register_pytree_node_class
class Dense:
    """Any symmetric, non-negative w [n, n] over the last axis of y.

    A pytree with the leaf w: it passes through jit, grad, vmap and `jax.tree.map`, and
    is differentiable in w, entry by entry. Checked, and copied, when built from
    concrete values. A traced w, and one that an update of this pytree has made, cannot
    be refused: where it is not symmetric, or negative somewhere, z and gradients are
    NaN. So train a free v of which w = max((v + v^T) / 2, 0) is the coupling.

    Args:
        w: real, in float32 or float64; half precision and integers are converted.
        sigma: the nonlinearity, as in `Uniform`.

    Raises:
        ValueError: w is not real, not square, not symmetric, negative somewhere, not
            finite, or empty.
    """

    w: Float[Array | np.ndarray, "n n"]
    sigma: Sigma

    def __init__(self, w, sigma: Sigma = sigmas.tanh):
        _check_sigma("Dense", sigma)
        self.w = w if isinstance(w, Tracer) else _checked_weights(w)
        self.sigma = sigma

    @classmethod
    def unchecked(cls, w, sigma: Sigma = sigmas.tanh, negative=None) -> "Dense":
        """Without the checks; negative: max(0, -smallest eigenvalue of w), if known."""
        dense = object.__new__(cls)
        dense.w, dense.sigma = w, sigma
        if negative is not None:
            dense.__dict__["negative"] = negative
        return dense

    def tree_flatten(self):
        return (self.w,), self.sigma

    @classmethod
    def tree_unflatten(cls, sigma, leaves):
        return cls.unchecked(leaves[0], sigma)

    def __repr__(self):
        return f"Dense(w={np.shape(self.w)})"

    @cached_property
    def negative(self) -> float | Array:
        """max(0, -smallest eigenvalue of w); its largest row sum where w is traced."""
        if isinstance(self.w, Tracer):
            return self.w.sum(-1).max()
        least = float(np.linalg.eigvalsh(np.asarray(self.w, np.float64)).min())
        rounding = 10 * len(self.w) * float(np.finfo(self.w.dtype).eps)
        return 0.0 if least >= -rounding * float(np.max(self.w)) else -least

    def coupled_axes(self, ndim: int) -> tuple[int, ...]:
        """As `Uniform.coupled_axes`."""
        return _check_axes((-1,), ndim, "Dense")

    def bind(self, shape: tuple[int, ...]) -> DenseOperator:
        """As `Uniform.bind`."""
        if shape != (self.w.shape[0],):
            raise ValueError(
                f"Dense: w is {self.w.shape} but the last axis of y has {shape[0]} "
                "neurons"
            )
        known_psd = isinstance(self.negative, float) and self.negative == 0
        checked = isinstance(self.w, np.ndarray)
        w = self.w if checked else _nan_if_invalid(self.w)
        return DenseOperator(w, shape, self.sigma, known_psd, self.negative)


Coupling = Uniform | Window | Dense


def check_coupling(coupling) -> None:
    """Raise ValueError for what is no coupling, with the nearest right spelling."""
    if isinstance(coupling, Coupling):
        return
    spelled = {
        "channel": "Uniform((-3, -2))",
        "layer": "Uniform((-3, -2, -1))",
        "pixel": "Uniform((-1,))",
    }
    meant = spelled.get(coupling) if isinstance(coupling, str) else None
    hint = f"; for {coupling!r} use ibnn_jax.{meant}" if meant else ""
    got = coupling if isinstance(coupling, str | type | None) else type(coupling)
    raise ValueError(
        f"coupling must be ibnn_jax.Uniform, Window or Dense; got {got!r}{hint}"
    )


def check_slope(p) -> None:
    """Raise ValueError where p is known and not positive everywhere."""
    real_array("p", p)
    if is_known(p) and not (np.asarray(p) > 0).all():
        raise ValueError(
            "p must be positive (it is the slope of sigma at the origin); "
            f"got {np.min(p)}"
        )


def symmetrised(w: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """max((w + w^T) / 2, 0): the coupling that a trained w stands for."""
    return jnp.maximum(0.5 * (w + w.swapaxes(-1, -2)), 0)


def _integers(owner: str, name: str, value) -> tuple[int, ...]:
    values = (value,) if isinstance(value, Integral) else value
    try:
        values = tuple(values)
        if any(isinstance(v, (bool, np.bool_)) for v in values):
            raise TypeError
        return tuple(operator.index(v) for v in values)
    except TypeError:
        raise ValueError(f"{owner}: {name} must be integers; got {value!r}") from None


def _distinct(owner: str, axes) -> tuple[int, ...]:
    axes = _integers(owner, "axes", axes)
    if len(set(axes)) != len(axes):
        raise ValueError(f"{owner}: axes {axes} name the same axis of y twice")
    return axes


def _check_sigma(owner: str, sigma) -> None:
    if not isinstance(sigma, Sigma):
        raise ValueError(
            f"{owner}: sigma must be ibnn_jax.tanh, hard_tanh or a Sigma with its "
            f"primitive; got {sigma!r:.60}"
        )


def _check_axes(axes: tuple[int, ...], ndim: int, owner: str) -> tuple[int, ...]:
    if any(not -ndim <= a < ndim for a in axes):
        raise ValueError(
            f"{owner}: axes {axes} do not exist in y of rank {ndim}; give y more axes "
            "or name others, e.g. Uniform((-1,)) for features"
        )
    axes = tuple(a % ndim for a in axes)
    if len(set(axes)) != len(axes):
        raise ValueError(f"{owner}: axes {axes} name the same axis of y twice")
    return axes


def _nan_if_invalid(w: Array | np.ndarray) -> Array:
    """w, or NaN where it is not symmetric or has negative entries.

    Up to `ASYMMETRY`, so that single entries may be moved for differences.
    """
    w = real_array("w", w)
    w = w if jnp.issubdtype(w.dtype, jnp.floating) else w.astype(float)
    largest = jnp.abs(w).max()
    wrong = jnp.maximum(jnp.abs(w - w.T).max(), -w.min())
    factor = jnp.where(wrong <= ASYMMETRY * largest, 1, jnp.nan)
    return w * factor.astype(w.dtype)  # so gradients are NaN too


def _checked_weights(w) -> np.ndarray:
    try:
        w = np.array(w)  # a copy
    except ValueError:
        raise ValueError("Dense: w has rows of different lengths") from None
    if w.ndim != 2 or w.shape[0] != w.shape[1] or w.size == 0:
        raise ValueError(
            f"Dense: w must be a non-empty square matrix [n, n]; got shape {w.shape}"
        )
    if w.dtype.kind in "iub":
        w = w.astype(np.result_type(float))
    elif jnp.issubdtype(w.dtype, jnp.floating):
        w = w.astype(np.float32) if w.dtype.itemsize < 4 else w
    else:
        raise ValueError(f"Dense: w must be real; got dtype {w.dtype}")
    if not np.isfinite(w).all():
        raise ValueError("Dense: w has NaN or infinite entries")
    if (w < 0).any():
        raise ValueError(
            f"Dense: w must be non-negative; its smallest entry is {w.min()}"
        )
    if abs(w - w.T).max() > 10 * np.finfo(w.dtype).eps * w.max():
        raise ValueError(
            "Dense: w must be symmetric, or the solution minimises no energy; use "
            "(w + w.T) / 2"
        )
    return w
