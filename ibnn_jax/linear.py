"""Preconditioned conjugate gradients for many independent symmetric systems at once."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int


class LinearSolution(NamedTuple):
    x: Float[Array, "G n"]
    residual: Float[
        Array, "G"
    ]  # max_i |b - A x|_i over the unknowns with weight, from the recurrence
    steps: Int[Array, "G"]
    ok: Bool[Array, "G"]  # residual within tol


def conjugate_gradient(
    matvec: Callable[[Array], Array],
    b: Float[Array, "G n"],
    inverse_diagonal: Float[Array, "G n"],
    *,
    tol: Float[Array, "G"],
    max_steps: int,
    active: Bool[Array, "G"],
    weight: Float[Array, "G n"] | float = 1.0,
) -> LinearSolution:
    """Solve A x = b per group from x = 0, A symmetric positive definite, until max|b - A x| <= tol (absolute).

    A group that meets a direction with d.A d <= 0 stops there with ok = False: its A is not positive definite.
    Groups not active are left at x = 0. `weight` >= 0 defines the inner product sum_i weight_i a_i b_i in which A is
    symmetric, where that is not the plain one. An unknown without weight must act on no other; the inner product does not
    see it, so it is left out and solved for last, by its inverse_diagonal.
    Reference: Hestenes and Stiefel (1952), preconditioned by the diagonal.
    """
    counted = weight > 0
    preconditioner = jnp.where(counted, inverse_diagonal, 0)

    def dot(a, b):
        return (weight * a * b).sum(-1)

    def largest(r):
        return jnp.where(counted, jnp.abs(r), 0).max(-1)

    def body(carry):
        k, x, r, d, rho, active, steps = carry
        ad = matvec(d)
        curvature = dot(d, ad)
        good = active & (curvature > 0)
        alpha = jnp.where(good, rho / jnp.where(good, curvature, 1), 0)[:, None]
        x, r = (
            jnp.where(good[:, None], x + alpha * d, x),
            jnp.where(good[:, None], r - alpha * ad, r),
        )
        q = preconditioner * r
        rho, last = dot(r, q), rho
        beta = jnp.where(good, rho / jnp.where(good, last, 1), 0)[:, None]
        return k + 1, x, r, q + beta * d, rho, good & (largest(r) > tol), steps + good

    d = preconditioner * b
    going = active & (largest(b) > tol)
    carry = (
        jnp.int32(0),
        jnp.zeros_like(b),
        b,
        d,
        dot(b, d),
        going,
        jnp.zeros(len(b), jnp.int32),
    )
    _, x, r, *_, steps = jax.lax.while_loop(
        lambda c: (c[0] < max_steps) & (c[5].sum() > 0), body, carry
    )
    residual = largest(r)
    x = jnp.where(counted | ~active[:, None], x, inverse_diagonal * r)
    return LinearSolution(x, residual, steps, residual <= tol)
