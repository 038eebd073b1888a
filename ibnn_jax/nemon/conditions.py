"""Four conditions, each enough for z = phi(A z + u) to have exactly one solution."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ibnn_jax.nemon.activations import slope
from ibnn_jax.nemon.weights import best_weights, matrix_measure


def is_contractive(
    A: Float[Array, "n n"], eta: Float[Array, "n"] | None = None
) -> Bool[Array, ""]:
    """mu(A) < 1 in the infinity norm weighted by eta; None takes the best eta."""
    eta = best_weights(A) if eta is None else eta
    return matrix_measure(A, eta) < 1


def is_norm_bounded(A: Float[Array, "n n"]) -> Bool[Array, ""]:
    """|A|_inf < 1."""
    return jnp.abs(A).sum(1).max() < 1


def is_monotone(A: Float[Array, "n n"]) -> Bool[Array, ""]:
    """The symmetric part of I - A is positive definite (monotone operator networks)."""
    return jnp.linalg.eigvalsh((A + A.T) / 2).max() < 1


def subhomogeneous_degree(
    A: Float[Array, "n n"],
    u: Float[Array, "... n"],
    activation: Callable[[Array], Array] = jnp.tanh,
    largest: float = 1e4,
) -> Float[Array, ""]:
    """The degree of z -> phi(A z + u) on z > 0; below 1, one z > 0 solves.

    The map then contracts in Thompson's metric, max_i |log z_i - log z'_i|. For A >= 0
    and u >= 0 the map keeps z >= 0, and with t = (A z)_i >= 0 its i-th entry changes
    relative to z by at most

        degree = max_i sup_{t >= 0} |t phi'(t + u_i) / phi(t + u_i)|

    The size of A does not matter. Where A or u has a negative entry, or phi is not
    positive, the result is infinite: this argument says nothing there. The supremum is
    taken over a grid of t, so it is a check, not a proof.

    Args:
        largest: end of the grid of t.

    Reference: Sittoni and Tudisco, Subhomogeneous deep equilibrium models (2024).
    """
    t = jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-4, largest, 400)])
    s = t.astype(u.dtype) + u[..., None]
    value = activation(s)
    ratio = jnp.abs(t.astype(u.dtype) * slope(activation, s) / value)
    applies = (A >= 0).all() & (u >= 0).all() & (value[..., 1:] > 0).all()
    degree = jnp.where(value > 0, ratio, 0).max()
    return jnp.where(applies, degree, jnp.inf)


def is_subhomogeneous(A, u, activation=jnp.tanh) -> Bool[Array, ""]:
    """`subhomogeneous_degree` is below 1."""
    return subhomogeneous_degree(A, u, activation) < 1
