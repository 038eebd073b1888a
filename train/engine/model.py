"""The network that a config describes."""

from functools import partial
from math import prod

import jax.numpy as jnp
from flax import nnx

import ibnn_jax

SOLVERS = {
    "meanfield": "MeanField",
    "newton": "Newton",
    "picard": "Picard",
    "gradient_descent": "GradientDescent",
    "anderson": "Anderson",
    "broyden": "Broyden",
}
AXES = {"channel": (-3, -2), "layer": (-3, -2, -1), "pixel": (-1,)}


def build_model(config, image_shape, classes, key, implicit, axis_name=None):
    """The UCN a config describes, with the initial values of this key."""
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


def _neuron(config, image_shape):
    """The factory of the implicit layers."""
    if config.coupling in AXES:
        coupling = ibnn_jax.Uniform(axes=AXES[config.coupling])
    else:
        sides = tuple(int(side) for side in config.coupling.split("x"))
        coupling = ibnn_jax.Window(size=sides)
    return partial(
        ibnn_jax.ImplicitBias,
        lam=config.lam,
        train_lam=config.train_lam,
        p=config.p,
        coupling=coupling,
        constraint=None if config.constraint == "none" else config.constraint,
        solver=_solver(config, coupling, (*image_shape[:2], config.channels)),
        adjoint=_adjoint(config),
        tol=config.tol,
        max_steps=config.max_steps,
    )


def _adjoint(config):
    if config.adjoint == "implicit":
        return ibnn_jax.Implicit(max_relative_residual=config.give_up)
    return getattr(ibnn_jax, config.adjoint.capitalize())()


def _solver(config, coupling, maps):
    """The solver a config asks for, for this coupling of maps [H, W, C]."""
    uniform = isinstance(coupling, ibnn_jax.Uniform)
    if uniform and not config.retry and config.solver in ("auto", "meanfield"):
        return ibnn_jax.MeanField(cells=(15,), pairwise_max_size=0)
    if config.solver != "auto":
        return getattr(ibnn_jax, SOLVERS[config.solver])()
    neurons = prod(maps[axis] for axis in coupling.axes)
    to_its_bound = config.train_lam and config.constraint == "unique"
    return ibnn_jax.default_solver(coupling, neurons, at_the_bound=to_its_bound)
