"""Dense and convolutional layers of implicit-bias neurons (paper Eqs. 3, 4)."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from ibnn_jax.core.adjoint import AbstractAdjoint
from ibnn_jax.core.options import check_count
from ibnn_jax.core.solution import Stats
from ibnn_jax.core.solver import AbstractSolver
from ibnn_jax.ibnn.couplings import Coupling, Uniform
from ibnn_jax.nn.convolution import general_convolution
from ibnn_jax.nn.implicit_bias import ImplicitBias
from ibnn_jax.nn.recipe import saveable

Activation = Callable[[Array], Array]


class _Layer(nnx.Module):
    """v = phi(F(affine(x); lam))."""

    affine: Callable[[Array], Array]
    implicit: ImplicitBias
    activation: Activation

    @overload
    def __call__(
        self, x: Array, *, return_stats: Literal[True]
    ) -> tuple[Array, Stats]: ...
    @overload
    def __call__(self, x: Array, *, return_stats: bool = False) -> Array: ...
    def __call__(self, x: Array, *, return_stats: bool = False):
        """v, of the shape that the affine map gives; with return_stats, (v, Stats)."""
        if not return_stats:
            return self.activation(self.implicit(self.affine(x)))
        z, stats = self.implicit(self.affine(x), return_stats=True)
        return self.activation(z), stats


def _check(activation: Any, channels: int | None, out_features: int) -> None:
    if not callable(activation):
        raise ValueError(
            f"activation must be a function such as jax.nn.relu; got {activation!r}"
        )
    if channels is not None and channels != out_features:
        raise ValueError(
            f"channels must be None or out_features, {out_features}; got {channels}"
        )


@saveable
class IBNNLinear(_Layer):
    """v = phi(F(x M + c; lam)): a dense layer whose output neurons are all coupled.

    x [..., in] -> v [..., out]; Eqs. 3, 4 with c = -b.

    Args:
        in_features, out_features: sizes.
        use_bias, dtype, param_dtype, precision, kernel_init, bias_init: of the affine
            map, as in `nnx.Linear`.
        activation: phi, elementwise.
        coupling, channels, lam, p, train_lam, train_p, train_w, constraint, batched,
            lite, solver, adjoint, tol, max_steps: as in `ImplicitBias`.
        rngs: random streams.

    Raises:
        ValueError: as `ImplicitBias`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        precision: Any = None,
        activation: Activation = nnx.relu,
        kernel_init: nnx.Initializer = nnx.initializers.lecun_normal(),
        bias_init: nnx.Initializer = nnx.initializers.zeros_init(),
        coupling: Coupling = Uniform((-1,)),
        channels: int | None = None,
        lam: float | Array | None = None,
        p: float = 10.0,
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
        rngs: nnx.Rngs,
    ):
        self.affine = nnx.Linear(
            in_features,
            out_features,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        _check(activation, channels, out_features)
        self.implicit = ImplicitBias(
            coupling=coupling,
            channels=channels,
            lam=lam,
            p=p,
            train_lam=train_lam,
            train_p=train_p,
            train_w=train_w,
            constraint=constraint,
            batched=batched,
            lite=lite,
            solver=solver,
            adjoint=adjoint,
            tol=tol,
            max_steps=max_steps,
            rngs=rngs,
        )
        self.activation = activation


@saveable
class IBNNConv(_Layer):
    """v = phi(F(conv(x) + c; lam)): a convolution whose output map is coupled.

    x [N, *spatial, in] -> v [N, *spatial', out], channels last, with one, two or three
    spatial axes: as many as kernel_size has. By default they are coupled inside each
    channel. Eqs. 3, 4 with c = -b.

    Args:
        in_features, out_features: channels.
        kernel_size: sizes of the filters along the spatial axes.
        strides, padding, input_dilation, kernel_dilation, feature_group_count,
            use_bias, dtype, param_dtype, precision, kernel_init, bias_init,
            conv_general_dilated: of the affine map, as in `nnx.Conv`.
        activation: phi, elementwise.
        coupling: None couples all spatial axes uniformly.
        channels, lam, p, train_lam, train_p, train_w, constraint, batched, lite,
            solver, adjoint, tol, max_steps: as in `ImplicitBias`; batched=False takes
            one example, as under `jax.vmap`.
        rngs: random streams.

    Raises:
        ValueError: as `ImplicitBias`; a coupling that reaches the batch axis; a
            kernel_size that is no size.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        *,
        strides: int | Sequence[int] = 1,
        padding: Any = "SAME",
        input_dilation: int | Sequence[int] = 1,
        kernel_dilation: int | Sequence[int] = 1,
        feature_group_count: int = 1,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        precision: Any = None,
        activation: Activation = nnx.relu,
        kernel_init: nnx.Initializer = nnx.initializers.lecun_normal(),
        bias_init: nnx.Initializer = nnx.initializers.zeros_init(),
        conv_general_dilated: Callable = general_convolution,
        coupling: Coupling | None = None,
        channels: int | None = None,
        lam: float | Array | None = None,
        p: float = 10.0,
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
        rngs: nnx.Rngs,
    ):
        sides: Any = kernel_size if np.ndim(kernel_size) else (kernel_size,)
        size = tuple(check_count("kernel_size", side) for side in sides)
        self.affine = nnx.Conv(
            in_features,
            out_features,
            size,
            strides=strides,
            padding=padding,
            input_dilation=input_dilation,
            kernel_dilation=kernel_dilation,
            feature_group_count=feature_group_count,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
            conv_general_dilated=conv_general_dilated,
        )
        spatial = tuple(range(-len(size) - 1, -1))
        _check(activation, channels, out_features)
        self.implicit = ImplicitBias(
            coupling=Uniform(spatial) if coupling is None else coupling,
            channels=channels,
            lam=lam,
            p=p,
            train_lam=train_lam,
            train_p=train_p,
            train_w=train_w,
            constraint=constraint,
            batched=batched,
            lite=lite,
            solver=solver,
            adjoint=adjoint,
            tol=tol,
            max_steps=max_steps,
            rngs=rngs,
        )
        self.activation = activation
