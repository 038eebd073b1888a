"""Flax NNX layers whose neurons solve the implicit-bias equation (paper Eqs. 3, 4)."""

import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from ibnn_jax.couplings import Coupling, Uniform, uniqueness_bound
from ibnn_jax.solve import implicit_bias, one_step

CONSTRAINTS = ("unique", "nonpositive", None)
MARGIN = 0.95  # "unique" keeps lam below this share of the uniqueness bound


class Frozen(nnx.Variable):
    """A value that moves and is saved with the model but is not trained."""


def _normal(std):
    return lambda key, shape, dtype: std * jax.random.normal(key, shape, dtype)


class ImplicitBias(nnx.Module):
    """z = y - lam B(z): the new bias of Eq. (4) as a layer of its own, between an affine map and its activation.

    Args:
        coupling: which axes of y are coupled, and how; the default couples the pixels inside each channel.
        channels: None for one scalar lam, or the size of the last axis of y for one lam per channel.
        lam: the initial lam, a scalar or array that fits `channels`; None draws it from N(0, 1e-3) (needs rngs).
        p: the slope of sigma at the origin, > 0.
        train_lam, train_p: whether they are `nnx.Param`s; p is kept positive by training log p.
        constraint: where `project` keeps a trained lam: "unique", at most 0.95 of the uniqueness bound;
            "nonpositive", at most 0; None, free.
        lite: replace the solution by one explicit step, z = y - lam B(y).
        solver, adjoint, tol, max_steps: as in `implicit_bias`.
        rngs: needed only to draw lam.

    Raises:
        ValueError: p <= 0, an unknown constraint, a lam of the wrong shape, or no rngs to draw it from.
    """

    def __init__(
        self,
        *,
        coupling: Coupling = Uniform((-3, -2)),
        channels: int | None = None,
        lam: float | Array | None = None,
        p: float = 10.0,
        train_lam: bool = True,
        train_p: bool = False,
        constraint: str | None = "unique",
        lite: bool = False,
        solver="auto",
        adjoint=None,
        tol: float | None = None,
        max_steps: int | None = None,
        rngs: nnx.Rngs | None = None,
    ):
        if constraint not in CONSTRAINTS:
            raise ValueError(
                f"constraint must be one of {CONSTRAINTS}; got {constraint!r}"
            )
        if np.ndim(p) or not p > 0:
            raise ValueError(f"p must be one positive number; got {p}")
        shape = () if channels is None else (channels,)
        if lam is None:
            if rngs is None:
                raise ValueError(
                    "ImplicitBias needs rngs=nnx.Rngs(seed) to draw lam; or give lam a value"
                )
            value = _normal(1e-3)(rngs.params(), shape, jnp.float32)
        else:
            if jnp.shape(lam) not in ((), shape):
                raise ValueError(
                    f"lam of shape {jnp.shape(lam)} does not fit channels={channels}: use a scalar or {shape}"
                )
            value = jnp.broadcast_to(jnp.asarray(lam, jnp.float32), shape)
        self.lam = (nnx.Param if train_lam else Frozen)(value)
        self.log_p = (nnx.Param if train_p else Frozen)(
            jnp.log(jnp.asarray(p, jnp.float32))
        )
        self.coupling, self.constraint, self.lite = (
            nnx.static(coupling),
            constraint,
            lite,
        )
        self.solver, self.adjoint, self.tol, self.max_steps = (
            solver,
            adjoint,
            tol,
            max_steps,
        )
        self._warned = False

    @property
    def p(self) -> Array:
        return jnp.exp(self.log_p[...])

    def __call__(self, y: Float[Array, "..."], *, return_stats: bool = False):
        """z of the shape and dtype of y; with return_stats, (z, Stats) per coupled group."""
        self._warn_once()
        lam, p = self.lam[...], self.p
        if self.lite:
            return one_step(y, lam, p, self.coupling, has_stats=return_stats)
        return implicit_bias(
            y,
            lam,
            p,
            self.coupling,
            solver=self.solver,
            adjoint=self.adjoint,
            tol=self.tol,
            max_steps=self.max_steps,
            has_stats=return_stats,
        )

    def project(self) -> None:
        """Bring lam back inside its constraint, in place."""
        if self.constraint is not None and isinstance(self.lam, nnx.Param):
            limit = (
                0.0
                if self.constraint == "nonpositive"
                else MARGIN * uniqueness_bound(self.p, self.coupling)
            )
            self.lam[...] = jnp.minimum(self.lam[...], limit)

    def _warn_once(self):
        if (
            self._warned
            or isinstance(self.lam[...], jax.core.Tracer)
            or isinstance(self.p, jax.core.Tracer)
        ):
            return
        largest, bound = (
            float(self.lam[...].max()),
            float(uniqueness_bound(self.p, self.coupling)),
        )
        if largest >= bound:
            self._warned = True
            warnings.warn(
                f"lam = {largest:.4g} is past the uniqueness bound {bound:.4g} (p = {float(self.p):g}): the equation may "
                "have several solutions, and the layer returns the one reached by descent from z = y",
                stacklevel=3,
            )


class IBNNLinear(nnx.Module):
    """v = phi(F(x M + c; lam)): a dense layer whose output neurons are all coupled (Eqs. 3, 4 with c = -b).

    Args:
        in_features, out_features: sizes; x [..., in] -> v [..., out].
        activation: phi, elementwise.
        kernel_init, bias_init: initialisers of the affine map (`nnx.Linear`).
        rngs: random streams; the other keywords go to `ImplicitBias`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: Callable[[Array], Array] = nnx.relu,
        kernel_init=nnx.initializers.lecun_normal(),
        bias_init=nnx.initializers.zeros_init(),
        coupling: Coupling = Uniform((-1,)),
        rngs: nnx.Rngs,
        **implicit,
    ):
        self.affine = nnx.Linear(
            in_features,
            out_features,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        self.implicit = ImplicitBias(coupling=coupling, rngs=rngs, **implicit)
        self.activation = activation

    def __call__(self, x: Float[Array, "... in"], *, return_stats: bool = False):
        """v [..., out]; with return_stats, (v, Stats)."""
        return _activate(
            self.activation,
            self.implicit(self.affine(x), return_stats=return_stats),
            return_stats,
        )


class IBNNConv(nnx.Module):
    """v = phi(F(conv(x) + c; lam)): a channels-last convolution whose output map is coupled (Eqs. 3, 4).

    Args:
        in_features, out_features: channels; x [N, H, W, in] -> v [N, H', W', out].
        kernel_size: rows and columns of the filters.
        strides, padding: as in `nnx.Conv`.
        activation: phi, elementwise.
        kernel_init, bias_init: initialisers of the affine map.
        rngs: random streams; the other keywords go to `ImplicitBias`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: tuple[int, int],
        *,
        strides: int | tuple[int, int] = 1,
        padding="SAME",
        activation: Callable[[Array], Array] = nnx.relu,
        kernel_init=nnx.initializers.lecun_normal(),
        bias_init=nnx.initializers.zeros_init(),
        coupling: Coupling = Uniform((-3, -2)),
        rngs: nnx.Rngs,
        **implicit,
    ):
        self.affine = nnx.Conv(
            in_features,
            out_features,
            kernel_size,
            strides=strides,
            padding=padding,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        self.implicit = ImplicitBias(coupling=coupling, rngs=rngs, **implicit)
        self.activation = activation

    def __call__(self, x: Float[Array, "N H W in"], *, return_stats: bool = False):
        """v [N, H', W', out]; with return_stats, (v, Stats)."""
        return _activate(
            self.activation,
            self.implicit(self.affine(x), return_stats=return_stats),
            return_stats,
        )


def _activate(activation, z, has_stats):
    return (activation(z[0]), z[1]) if has_stats else activation(z)


def implicit_layers(model: nnx.Module) -> list[ImplicitBias]:
    """Every ImplicitBias inside a module, in graph order."""
    return [
        module
        for _, module in nnx.iter_modules(model)
        if isinstance(module, ImplicitBias)
    ]


def project(model: nnx.Module) -> None:
    """Apply each implicit layer's constraint on lam, in place; call it after every optimiser update."""
    for layer in implicit_layers(model):
        layer.project()
