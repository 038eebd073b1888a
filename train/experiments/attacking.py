"""What the experiments that attack or analyse networks share. Imports JAX."""

import jax
import jax.numpy as jnp

import ibnn_jax


def standard(model):
    """The model without its implicit layers: the SM surrogate, with the same convolutions, batch norm and head. In place."""
    for block in model.blocks:
        block.implicit = None
    return model


def differentiated(model, adjoint, solver=None):
    """The model with another adjoint, and solver, in its implicit layers. In place."""
    for layer in ibnn_jax.implicit_layers(model):
        layer.adjoint, layer.solver = adjoint, solver or layer.solver
    return model


def unsolved(model, images):
    """Which images leave a group of neurons whose solve did not converge, bool [N]."""
    _, stats = model(images, return_stats=True)
    none = jnp.zeros(len(images), bool)
    return (
        sum(((~s.converged.reshape(len(images), -1)).any(1) for s in stats), none) > 0
    )


def in_batches(f, *arrays, size=100):
    """f over the leading axis of the arrays, at most `size` rows at a time; f returns a tree of arrays led by the rows."""
    return jax.lax.map(
        lambda row: jax.tree.map(lambda x: x[0], f(*(x[None] for x in row))),
        arrays,
        batch_size=size,
    )
