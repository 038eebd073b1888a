"""The implicit bias as a Flax NNX layer."""

import warnings
from typing import Any, Literal, overload
from weakref import WeakSet

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.core import Tracer
from jaxtyping import Float

from ibnn_jax.core.adjoint import AbstractAdjoint
from ibnn_jax.core.options import check_count, check_flag, is_known, real_array
from ibnn_jax.core.solution import Stats
from ibnn_jax.core.solver import AbstractSolver
from ibnn_jax.ibnn.couplings import Coupling, Dense, Uniform, symmetrised
from ibnn_jax.ibnn.evaluate import one_step
from ibnn_jax.ibnn.solve import check_options, implicit_bias
from ibnn_jax.ibnn.uniqueness import CONSTRAINTS, project_lam, uniqueness_bound
from ibnn_jax.nn.recipe import saveable

# Layers that have warned that lam is past its bound. Not a flag on the module: jit
# traces a module again when one of its attributes changes.
_warned: "WeakSet[ImplicitBias]" = WeakSet()


class Frozen(nnx.Variable):
    """An array of the model that is saved with it and is not trained."""


@saveable
class ImplicitBias(nnx.Module):
    """z = y - lam B(z): the new bias of Eq. (4) as a layer of its own.

    Args:
        coupling: which axes of y are coupled, and how; the default couples the pixels
            inside each channel of y [N, H, W, C]. The w of a `Dense` coupling becomes a
            variable of the module.
        channels: None for one scalar lam, or the size of the last axis of y for one lam
            per channel.
        lam: the initial lam, a scalar or array that fits `channels`; None draws it from
            N(0, 1e-3) (needs rngs).
        p: the slope of sigma at the origin, > 0.
        train_lam, train_p, train_w: whether they are `nnx.Param`s. p is kept positive
            by training log p; w is used as max((w + w^T) / 2, 0).
        constraint: where `project` keeps a trained lam: "unique", at most 0.95 of the
            uniqueness bound; "nonpositive", at most 0; None, free.
        batched: whether axis 0 of y is a batch, over which nothing may be coupled.
        lite: replace the solution by one explicit step, z = y - lam B(y).
        solver, adjoint, tol, max_steps: as in `implicit_bias`.
        rngs: needed only to draw lam.

    lam and p are float32, whatever y is.

    Raises:
        ValueError: p <= 0, an unknown constraint, solver or adjoint, a lam of the wrong
            shape, no rngs to draw it from, or batched or lite is no flag.
    """

    def __init__(
        self,
        *,
        coupling: Coupling = Uniform((-3, -2)),
        channels: int | None = None,
        lam: float | Array | None = None,
        p: float | Array = 10.0,
        train_lam: bool = True,
        train_p: bool = False,
        train_w: bool = False,
        constraint: str | None = "unique",
        batched: bool = True,
        lite: bool = False,
        solver: AbstractSolver | str = "auto",
        adjoint: AbstractAdjoint | None = None,
        tol: float | None = None,
        max_steps: int | None = None,
        rngs: nnx.Rngs | None = None,
    ):
        if constraint not in CONSTRAINTS:
            raise ValueError(
                f"constraint must be one of {CONSTRAINTS}; got {constraint!r}"
            )
        if real_array("p", p).ndim or not (not is_known(p) or p > 0):
            raise ValueError(f"p must be one positive number; got {p}")
        _check_channels(channels, coupling)
        tol, max_steps = check_options(coupling, solver, adjoint, tol, max_steps)
        self.lam = _variable(train_lam, _initial_lam(lam, channels, rngs))
        self.log_p = _variable(train_p, jnp.log(jnp.asarray(p, jnp.float32)))
        if train_w and not isinstance(coupling, Dense):
            raise ValueError(
                f"train_w needs a Dense coupling; {type(coupling).__name__} has no w"
            )
        self._set_coupling(coupling, train_w)
        self.constraint = constraint
        self.batched = check_flag("batched", batched)
        self.lite = check_flag("lite", lite)
        self.solver = solver
        self.adjoint = adjoint
        self.tol = tol
        self.max_steps = max_steps

    @property
    def p(self) -> Array:
        return jnp.exp(self.log_p[...])

    @property
    def coupling(self) -> Coupling:
        """The coupling, with the w that the module holds."""
        return self._coupling_with(_value(self.w), _value(self.w_negative))

    def _coupling_with(self, w: Array | None, negative: Array | None) -> Coupling:
        if w is None:
            return self._fixed
        if isinstance(self.w, nnx.Param):
            w = symmetrised(w)
        return Dense.unchecked(w, self._sigma, negative)

    def _set_coupling(self, coupling: Coupling, train_w: bool) -> None:
        """w, and what the bound needs of its eigenvalues, become variables."""
        self._fixed: Any = nnx.static(None)
        self._sigma = nnx.static(coupling.sigma)
        self.w: Any = nnx.data(None)
        self.w_negative: Any = nnx.data(None)
        if not isinstance(coupling, Dense):
            self._fixed = nnx.static(coupling)
        else:
            self.w = _variable(train_w, jnp.asarray(coupling.w))
            if not train_w:
                self.w_negative = Frozen(jnp.asarray(coupling.negative, jnp.float32))

    @overload
    def __call__(
        self, y: Array, *, return_stats: Literal[True]
    ) -> tuple[Array, Stats]: ...
    @overload
    def __call__(self, y: Array, *, return_stats: bool = False) -> Array: ...
    def __call__(self, y: Float[Array, "..."], *, return_stats: bool = False):
        """z of the shape and dtype of y; with return_stats, (z, Stats) per group.

        Raises:
            ValueError: as `implicit_bias`; a coupling that reaches the batch axis.
        """
        y, coupling = real_array("y", y), self.coupling
        self._check_axes(y, coupling)
        self._warn_once()
        lam, p = self.lam[...], self.p
        if lam.ndim:
            lam = lam.reshape((1,) * (jnp.ndim(y) - 1) + lam.shape)
        if self.lite:
            return one_step(y, lam, p, coupling, has_stats=return_stats)
        solution = implicit_bias(
            y,
            lam,
            p,
            coupling,
            solver=self.solver,
            adjoint=self.adjoint,
            tol=self.tol,
            max_steps=self.max_steps,
            return_solution=True,
        )
        return (solution.value, solution.stats) if return_stats else solution.value

    def project(self) -> None:
        """Bring lam back inside its constraint, in place; a trained w likewise.

        Also of a stack of modules, as `nnx.vmap` makes it.
        """
        if isinstance(self.w, nnx.Param):
            self.w[...] = symmetrised(self.w[...])
        if not isinstance(self.lam, nnx.Param):
            return

        def projected(lam, p, w, negative):
            coupling = self._coupling_with(w, negative)
            return project_lam(lam, p, coupling, self.constraint)

        for _ in range(self.p.ndim):  # p is one number in every module
            projected = jax.vmap(projected)
        self.lam[...] = projected(
            self.lam[...], self.p, _value(self.w), _value(self.w_negative)
        )

    def _check_axes(self, y, coupling: Coupling) -> None:
        if not self.batched or jnp.ndim(y) < 2:
            return
        axes = coupling.coupled_axes(jnp.ndim(y))
        if 0 in axes:
            raise ValueError(
                f"{type(coupling).__name__} over axes {axes} of y {jnp.shape(y)} would "
                "couple axis 0, the batch. Name other axes, e.g. "
                "coupling=Uniform((-2,)) for [N, T, C]; or batched=False if y is one "
                "example"
            )

    def _warn_once(self) -> None:
        lam, p = self.lam[...], self.p
        if self in _warned or any(isinstance(x, Tracer) for x in (lam, p)):
            return
        bound = uniqueness_bound(p, self.coupling)
        if isinstance(bound, Tracer):
            return
        largest, bound = float(lam.max()), float(bound)
        if largest >= bound:
            _warned.add(self)
            warnings.warn(
                f"lam = {largest:.4g} is past the uniqueness bound {bound:.4g} "
                f"(p = {float(p):g}): the equation may have several solutions, and the "
                "layer returns the one reached by descent from z = y",
                stacklevel=3,
            )


def implicit_layers(model: nnx.Module) -> list[ImplicitBias]:
    """Every ImplicitBias inside a module, in graph order."""
    modules = (module for _, module in nnx.iter_modules(model))
    return [module for module in modules if isinstance(module, ImplicitBias)]


def project(model: nnx.Module) -> None:
    """Apply each implicit layer's constraint on lam, in place.

    Call it after every optimiser update. For parameters outside NNX: `project_lam`.

    Raises:
        TypeError: the argument is not an `nnx.Module`.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"project takes an nnx.Module; got {type(model).__name__}. For parameters "
            "of your own use ibnn_jax.project_lam(lam, p, coupling)"
        )
    for layer in implicit_layers(model):
        layer.project()


def _value(variable: nnx.Variable | None) -> Array | None:
    return None if variable is None else variable[...]


def _check_channels(channels: int | None, coupling: Coupling) -> None:
    if channels is None:
        return
    check_count("channels", channels)
    if isinstance(coupling, Dense) or -1 in coupling.axes:
        raise ValueError(
            f"channels={channels} gives each entry of the last axis a lam, but "
            f"{type(coupling).__name__} couples that axis, and a group has one lam: "
            "use channels=None"
        )


def _variable(trained: bool, value: Array) -> nnx.Variable:
    return nnx.Param(value) if trained else Frozen(value)


def _initial_lam(lam, channels: int | None, rngs: nnx.Rngs | None) -> Array:
    shape = () if channels is None else (channels,)
    if lam is None:
        if rngs is None:
            raise ValueError(
                "ImplicitBias needs rngs=nnx.Rngs(seed) to draw lam; or give lam a "
                "value"
            )
        return 1e-3 * jax.random.normal(rngs.params(), shape, jnp.float32)
    lam = real_array("lam", lam)
    if lam.shape not in ((), shape):
        raise ValueError(
            f"lam of shape {lam.shape} does not fit channels={channels}: "
            f"use a scalar or {shape}"
        )
    return jnp.broadcast_to(jnp.asarray(lam, jnp.float32), shape)
