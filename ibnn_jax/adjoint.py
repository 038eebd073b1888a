"""How gradients flow through the solution z(y, lam, p, w): implicitly, through the iterations, or through a few steps.

At a solution, r(z; theta) = y - lam B(z) - z = 0, so dz/dtheta = H^-1 dr/dtheta with H = I + lam DB(z) symmetric
(paper Eqs. 27, 28). The cotangent v of z therefore needs one linear solve, H u = v, and then

    dL/dtheta = u . dr/dtheta:    dL/dy = u,    dL/dlam = -u . B(z),    dL/dp = -lam u . dB/dp,    and likewise w.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ibnn_jax.linear import conjugate_gradient
from ibnn_jax.problem import Problem
from ibnn_jax.solution import Result, Solution, Stats


@dataclass(frozen=True)
class Implicit:
    """Implicit differentiation: exact at the solution, memory independent of the number of solver steps.

    A group whose adjoint system could not be solved (its residual stays above `give_up` * max|v|) gets NaN gradients,
    never wrong ones in silence; one whose z is NaN likewise.

    Args:
        tol: relative residual of the adjoint solve, max|v - H u| <= tol max|v|; None takes 1e-6 in float32 and
            1e-11 in float64.
        max_steps: most conjugate-gradient steps.
        give_up: relative residual past which the gradient is declared lost; 1 or more never gives up on a finite one.
        any_order: also allow forward mode (`jax.jvp`, `jax.jacfwd`) and higher derivatives, through
            `jax.lax.custom_root` on the exact pairwise operator; slower, and the path for Hessians.
    """

    tol: float | None = None
    max_steps: int = 500
    give_up: float = 1e-2
    any_order: bool = False


@dataclass(frozen=True)
class Unrolled:
    """Differentiate through the solver's iterations: a scan of exactly `max_steps` of them, memory O(max_steps).

    Every order and mode of derivative works. For checks and comparisons; needs a solver that steps on all n neurons
    (any but MeanField; "auto" is Newton here).

    Args:
        max_steps: the length of the scan; None takes that of the solve.
    """

    max_steps: int | None = 20


@dataclass(frozen=True)
class Phantom:
    """Differentiate only k damped Picard steps taken from the solution; k = 1, damping = 1 is Jacobian-free backprop.

    The adjoint H^-1 is replaced by the first k terms of its Neumann series, damping * sum_j (I - damping H)^j, which
    approaches it as k grows where damping * H has its spectrum in (0, 2).

    References: Fung et al., JFB (2022); Geng et al., On training implicit models (2021).

    Raises:
        ValueError: k < 1, or damping outside (0, 1].
    """

    k: int = 1
    damping: float = 1.0

    def __post_init__(self):
        if self.k < 1 or not 0 < self.damping <= 1:
            raise ValueError(
                f"Phantom needs k >= 1 and 0 < damping <= 1; got k={self.k}, damping={self.damping}"
            )


Adjoint = Implicit | Unrolled | Phantom


def adjoint_solution(u, residual, steps, v, scale: float, give_up: float) -> Solution:
    """Pack an adjoint solve; groups past `give_up` are NONFINITE with value NaN, those between are MAX_STEPS."""
    size = jnp.abs(v).max(-1)
    finite = (
        jnp.isfinite(u).all(-1) & jnp.isfinite(residual) & (residual <= give_up * size)
    )
    converged = finite & (residual <= scale * size)
    code = jnp.where(
        converged,
        Result.CONVERGED,
        jnp.where(finite, Result.MAX_STEPS, Result.NONFINITE),
    )
    value = jnp.where(finite[:, None], u, jnp.nan)
    return Solution(value, code.astype(jnp.int32), Stats(steps, residual, converged))


def solve_adjoint_groups(
    problem: Problem, z: Float[Array, "G n"], v: Float[Array, "G n"], options: Implicit
) -> Solution:
    """u with (I + lam DB(z)) u = v by conjugate gradients, [G, n]; the residual is recomputed, not the recurrence's."""
    tol = adjoint_tol(options, v.dtype)
    size = jnp.abs(v).max(-1)
    valid = jnp.isfinite(z).all(-1) & jnp.isfinite(size)
    z, b = (jnp.where(valid[:, None], x, 0) for x in (z, v))
    hessian, inverse_diagonal = problem.hessian(z)
    found = conjugate_gradient(
        hessian,
        b,
        inverse_diagonal,
        tol=0.5 * tol * size,
        max_steps=options.max_steps,
        active=valid,
    )
    residual = jnp.abs(b - hessian(found.x)).max(-1)
    return adjoint_solution(
        found.x,
        jnp.where(valid, residual, jnp.nan),
        found.steps,
        v,
        tol,
        options.give_up,
    )


def adjoint_tol(options: Implicit, dtype) -> float:
    default = 1e-11 if jnp.dtype(dtype).itemsize == 8 else 1e-6
    return max(
        default if options.tol is None else options.tol, 8 * float(jnp.finfo(dtype).eps)
    )
