"""The network that a config describes."""

from math import prod

import jax
import jax.numpy as jnp
from flax import nnx

import ibnn_jax
from ibnn_jax.ibnn.solve import SMALL_GROUP

# MeanField's attempts where training takes lam to its bound. There most groups need a second one, and later in training some a third,
# in place of the pairwise finish: late steps take half the time, the first one 2 to 5 s longer to compile.
CELLS_NEXT_TO_THE_BOUND = (19, 47, 95, 511)


def build_model(config, image_shape, classes, key, implicit, axis_name=None):
    """The UCN a config describes, with the initial values of this key."""
    if config.adjoint == "implicit":
        adjoint = ibnn_jax.Implicit(give_up=config.give_up)
    else:
        adjoint = getattr(ibnn_jax, config.adjoint.capitalize())()
    axes = {"channel": (-3, -2), "layer": (-3, -2, -1), "pixel": (-1,)}
    if config.coupling in axes:
        coupling = ibnn_jax.Uniform(axes=axes[config.coupling])
    else:
        coupling = ibnn_jax.Window(
            size=tuple(int(side) for side in config.coupling.split("x"))
        )
    return ibnn_jax.UCN(
        image_shape,
        classes,
        layers=config.layers,
        channels=config.channels,
        implicit=implicit,
        rngs=nnx.Rngs(key),
        lam=config.lam,
        train_lam=config.train_lam,
        p=config.p,
        coupling=coupling,
        constraint=None if config.constraint == "none" else config.constraint,
        solver=_solver(config, coupling, (*image_shape[:2], config.channels)),
        adjoint=adjoint,
        tol=config.tol,
        max_steps=config.max_steps,
        dtype=jnp.bfloat16 if config.precision == "bfloat16" else None,
        axis_name=axis_name,
        conv_general_dilated=ibnn_jax.canonical_convolution
        if jax.default_backend() == "cpu"
        else jax.lax.conv_general_dilated,
    )


def _solver(config, coupling, maps):
    """The solver a config asks for, for this coupling of maps [H, W, C]."""
    solvers = {
        "meanfield": "MeanField",
        "newton": "Newton",
        "picard": "Picard",
        "gradient_descent": "GradientDescent",
        "anderson": "Anderson",
        "broyden": "Broyden",
    }
    uniform = isinstance(coupling, ibnn_jax.Uniform)
    if uniform and not config.retry and config.solver in ("auto", "meanfield"):
        return ibnn_jax.MeanField(cells=(15,), polish=0)
    if config.solver != "auto":
        return getattr(ibnn_jax, solvers[config.solver])()
    to_its_bound = (
        config.train_lam
        and config.constraint == "unique"
        and jax.default_backend() == "cpu"
    )
    if (
        to_its_bound
        and uniform
        and prod(maps[axis] for axis in coupling.axes) > SMALL_GROUP
    ):
        return ibnn_jax.MeanField(cells=CELLS_NEXT_TO_THE_BOUND)
    return "auto"
