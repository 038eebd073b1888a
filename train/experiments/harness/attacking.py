"""What the experiments that attack or analyse networks share. Imports JAX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

import ibnn_jax


def standard(model: ibnn_jax.UCN) -> ibnn_jax.UCN:
    """The SM surrogate of a network: a copy without its implicit layers.

    Convolutions, batch norm and head are the same.
    """
    model = nnx.clone(model)
    for block in model.blocks:
        block.implicit = None
    return model


def implicit(model: ibnn_jax.UCN, lam: float | Array) -> ibnn_jax.UCN:
    """A copy of a standard network, with implicit-bias neurons of this lam."""
    model = nnx.clone(model)
    for block in model.blocks:
        block.implicit = ibnn_jax.ImplicitBias(
            coupling=ibnn_jax.Uniform((-3, -2)),
            lam=lam,
            train_lam=False,
            constraint=None,
            rngs=nnx.Rngs(0),
        )
    model.eval()
    return model


def differentiated(
    model: ibnn_jax.UCN, adjoint: Any, solver: Any = None
) -> ibnn_jax.UCN:
    """A copy of the model with another adjoint, and solver, in its implicit layers."""
    model = nnx.clone(model)
    for layer in ibnn_jax.implicit_layers(model):
        layer.adjoint = adjoint
        layer.solver = solver or layer.solver
    return model


def unsolved(model: ibnn_jax.UCN, images: Array) -> Array:
    """Which images leave a group of neurons whose solve did not converge, bool [N]."""
    _, stats = model(images, return_stats=True)
    found = jnp.zeros(len(images), bool)
    for layer in stats:
        found |= (~layer.converged.reshape(len(images), -1)).any(1)
    return found


def in_batches(f: Callable, *arrays: Array, size: int = 100) -> Any:
    """f over the leading axis of the arrays, at most `size` rows at a time.

    f returns a tree of arrays led by the rows.
    """

    def one(row):
        return jax.tree.map(lambda x: x[0], f(*(x[None] for x in row)))

    return jax.lax.map(one, arrays, batch_size=size)
