"""What the accelerated solvers share: a memory of changes, and when to trust it.

A step that used the memory is kept only if it brings |r| down by 1% of the best so far
(less for a shortened step). Otherwise z stays, but the memory has learnt from the
trial, and half the next step is tried. After the fourth failure in a row the memory is
emptied and the safe step of the problem taken. So either accelerated steps are kept
without end, and |r| goes to zero, or in the end there are only safe steps, which
converge on their own.

Where the solution may not be unique all steps are safe steps: acceleration could end
at a saddle which descent only passes by.

Reference: Zhang, O'Donoghue and Boyd, Globally convergent type-I Anderson acceleration
(2020).
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ibnn_jax.core.problem import AbstractProblem


def square_norm(v: Float[Array, "... n"]) -> Float[Array, "..."]:
    """|v|^2 along the last axis."""
    return (v * v).sum(-1)


def push(memory: Float[Array, "G m n"], new: Float[Array, "G n"]) -> Array:
    """The memory with `new` in front and its oldest entry dropped."""
    return jnp.concatenate([new[:, None], memory[:, :-1]], 1)


def empty_memory(z: Float[Array, "G n"], size: int) -> Float[Array, "G m n"]:
    """A memory of `size` entries, all zero."""
    return jnp.zeros_like(jnp.repeat(z[:, None], size, 1))


def must_restart(
    problem: AbstractProblem, scale: Float[Array, "G"]
) -> Bool[Array, "G"]:
    """Whether the memory is to be emptied; scale: how much of the next step to take."""
    return ~problem.unique | (scale < 0.1)


def acceptable(square, best, scale: Float[Array, "G"]) -> Bool[Array, "G"]:
    """Whether a trial of this |r|^2 is kept, beside the best one so far."""
    return square <= (1 - 0.01 * scale) ** 2 * best
