"""The network that a config describes."""

import dataclasses
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
from flax import nnx

import ibnn_jax
from train.config import Config

COUPLED_AXES = {"channel": (-3, -2), "layer": (-3, -2, -1), "pixel": (-1,)}
SOLVERS = {
    "meanfield": ibnn_jax.MeanField,
    "newton": ibnn_jax.Newton,
    "picard": ibnn_jax.Picard,
    "gradient_descent": ibnn_jax.GradientDescent,
    "anderson": ibnn_jax.Anderson,
    "broyden": ibnn_jax.Broyden,
}


def build_model(
    config: Config,
    image_shape: tuple[int, int, int],
    classes: int,
    key: jax.Array,
    implicit: bool,
    axis_name: str | None = None,
) -> ibnn_jax.UCN | ibnn_jax.EquilibriumClassifier:
    """The network a config describes, with the initial values of this key.

    Args:
        implicit: with implicit-bias neurons, or its standard twin; nemon has no twin.
        axis_name: the mapped axis that each batch is spread over.

    Raises:
        ValueError: the coupling's window is larger than the images.
    """
    if config.model == "nemon":
        return _equilibrium(config, image_shape, classes, key)
    config.check_window(image_shape[:2])
    return ibnn_jax.UCN(
        image_shape,
        classes,
        layers=config.layers,
        channels=config.channels,
        neuron=_neuron(config, image_shape) if implicit else None,
        dtype=jnp.bfloat16 if config.precision == "bfloat16" else None,
        axis_name=axis_name,
        conv_general_dilated=ibnn_jax.fast_convolution(),
        rngs=nnx.Rngs(key),
    )


def _equilibrium(config: Config, image_shape, classes: int, key: jax.Array):
    solver = "auto" if config.solver == "auto" else SOLVERS[config.solver]()
    layer = partial(
        ibnn_jax.NEMON,
        gamma=config.gamma,
        solver=solver,
        adjoint=build_adjoint(config),
        tol=config.tol,
        max_steps=config.max_steps,
    )
    front = partial(ibnn_jax.ConvolutionalFront, channels=config.front_channels)
    return ibnn_jax.EquilibriumClassifier(
        image_shape,
        classes,
        features=config.features,
        layer=layer,
        front=front if config.front else None,
        rngs=nnx.Rngs(key),
    )


def _neuron(config: Config, image_shape: tuple[int, int, int]) -> partial:
    """The factory of the implicit layers."""
    coupling = build_coupling(config)
    return partial(
        ibnn_jax.ImplicitBias,
        lam=config.lam,
        train_lam=config.train_lam,
        p=config.p,
        coupling=coupling,
        constraint=None if config.constraint == "none" else config.constraint,
        solver=_solver(config, coupling, (*image_shape[:2], config.channels)),
        adjoint=build_adjoint(config),
        tol=config.tol,
        max_steps=config.max_steps,
    )


def build_coupling(config: Config) -> ibnn_jax.Uniform | ibnn_jax.Window:
    """Who is coupled with whom."""
    if config.window:
        return ibnn_jax.Window(size=config.window)
    return ibnn_jax.Uniform(axes=COUPLED_AXES[config.coupling])


def build_adjoint(
    config: Config,
) -> ibnn_jax.Implicit | ibnn_jax.Unrolled | ibnn_jax.Phantom:
    """How the implicit layers are differentiated."""
    if config.adjoint == "implicit":
        return ibnn_jax.Implicit(max_relative_residual=config.give_up)
    return ibnn_jax.Unrolled() if config.adjoint == "unrolled" else ibnn_jax.Phantom()


def _solver(config: Config, coupling, maps: tuple[int, ...]):
    """The solver a config asks for, with or without its GPU kernels."""
    solver = _solver_of_any_device(config, coupling, maps)
    if isinstance(solver, ibnn_jax.MeanField) and not config.kernels:
        return dataclasses.replace(solver, kernels=False)
    return solver


def _solver_of_any_device(config: Config, coupling, maps: tuple[int, ...]):
    """The solver for this coupling of maps [H, W, C]."""
    uniform = isinstance(coupling, ibnn_jax.Uniform)
    if uniform and not config.retry and config.solver in ("auto", "meanfield"):
        return ibnn_jax.MeanField(cells=(15,), pairwise_max_size=0)
    if config.adjoint == "unrolled" and config.solver == "auto":
        return "auto"  # of those solvers that can be unrolled
    if config.solver != "auto":
        return SOLVERS[config.solver]()
    neurons = prod(maps[axis] for axis in coupling.axes)
    return ibnn_jax.default_solver(coupling, neurons)
