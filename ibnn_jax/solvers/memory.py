"""What the solvers with memory, Anderson and Broyden, share."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


def square_norm(v: Float[Array, "G n"]) -> Float[Array, "G"]:
    """|v|^2 per group."""
    return (v * v).sum(-1)


def push(
    memory: Float[Array, "G m n"], new: Float[Array, "G n"]
) -> Float[Array, "G m n"]:
    """The memory with `new` in front and its oldest entry dropped."""
    return jnp.concatenate([new[:, None], memory[:, :-1]], 1)
