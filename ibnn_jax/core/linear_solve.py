"""Linear systems H x = b for many independent groups at once, and the adjoint's.

The methods are written here rather than taken from jax.scipy or lineax because each
group stops on its own, a group that fails must say so and leave the others alone, and
the loops also run inside a Pallas kernel, where vmap is not at hand.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from ibnn_jax.core.options import check_between, check_count, check_tol, settle
from ibnn_jax.core.problem import AbstractProblem, Linearisation
from ibnn_jax.core.solution import Result, Solution, Stats


WEAK = 1e-3  # cosines below it count as a breakdown of the recurrence of bicgstab
ATTEMPTS = 3  # most solves of one adjoint system, each of what the last one missed


class LinearSolution(NamedTuple):
    """What `linear_solve` returns, per group."""

    x: Float[Array, "G n"]
    residual: Float[Array, "G"]  # max_i |b - H x|_i by the recurrence, over weight > 0
    steps: Int[Array, "G"]
    ok: Bool[Array, "G"]  # residual within tol


@dataclass(frozen=True)
class LinearSettings:
    """How an adjoint system is solved.

    Args:
        tol: relative residual, max|v - H^T u| <= tol max|v|; None takes 1e-6 in
            float32 and 1e-11 in float64. At least 8 machine epsilons are used.
        max_steps: most steps of the linear solver.
        max_relative_residual: past it the solution counts as lost and becomes NaN.

    Raises:
        ValueError: an option that is no number of its kind.
    """

    tol: float | None = None
    max_steps: int = 500
    max_relative_residual: float = 1e-2

    def __post_init__(self):
        name = "max_relative_residual"
        most = check_between(name, self.max_relative_residual, 0, math.inf, closed=True)
        settle(
            self,
            tol=check_tol(self.tol),
            max_steps=check_count("max_steps", self.max_steps),
            max_relative_residual=most,
        )

    def tolerance(self, dtype) -> float:
        """The relative tolerance in this dtype."""
        default = 1e-11 if jnp.dtype(dtype).itemsize == 8 else 1e-6
        tol = default if self.tol is None else self.tol
        return max(tol, 8 * float(jnp.finfo(dtype).eps))


def linear_solve(
    h: Linearisation,
    b: Float[Array, "G n"],
    *,
    tol: Float[Array, "G"],
    max_steps: int,
    active: Bool[Array, "G"],
) -> LinearSolution:
    """Solve H x = b by the method that suits H, until max|b - H x| <= tol.

    Args:
        tol: absolute, per group.
        active: the groups to solve; the others stay at x = 0.
    """
    if h.symmetric:
        return conjugate_gradient(
            h.matvec,
            b,
            h.inverse_diagonal,
            tol=tol,
            max_steps=max_steps,
            active=active,
            weight=h.weight,
        )
    return bicgstab(
        h.matvec, b, h.inverse_diagonal, tol=tol, max_steps=max_steps, active=active
    )


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
    """Solve A x = b per group from x = 0, A symmetric positive definite.

    A group that meets a direction with d.A d <= 0 stops there with ok = False: its A
    is not positive definite. Groups that are not active stay at x = 0.

    Args:
        tol: absolute, on max|b - A x|.
        weight: >= 0, of the inner product sum_i weight_i a_i b_i in which A is
            symmetric. An unknown without weight must act on no other one; the inner
            product does not see it, so it is left out and solved for last, by its
            inverse_diagonal.

    Reference: Hestenes and Stiefel (1952), preconditioned by the diagonal.
    """
    counted = weight > 0
    preconditioner = jnp.where(counted, inverse_diagonal, 0)

    def dot(a, b):
        return (weight * a * b).sum(-1)

    def largest(r):
        return jnp.where(counted, jnp.abs(r), 0).max(-1)

    def body(state):
        step, x, r, d, rho, active, steps = state
        ad = matvec(d)
        curvature = dot(d, ad)
        good = active & (curvature > 0)
        alpha = jnp.where(good, rho / jnp.where(good, curvature, 1), 0)[:, None]
        x = jnp.where(good[:, None], x + alpha * d, x)
        r = jnp.where(good[:, None], r - alpha * ad, r)
        q = preconditioner * r
        rho, last = dot(r, q), rho
        beta = jnp.where(good, rho / jnp.where(good, last, 1), 0)[:, None]
        active = good & (largest(r) > tol)
        steps = steps + good.astype(jnp.int32)
        return _CGState(step + 1, x, r, q + beta * d, rho, active, steps)

    def unfinished(state):
        # A sum, because Pallas kernels have no any().
        return (state.step < max_steps) & (state.active.sum() > 0)

    d = preconditioner * b
    rho = dot(b, d)
    start = _CGState(
        step=jnp.int32(0),
        x=jnp.zeros_like(b),
        r=b,
        d=d,
        rho=rho,
        active=active & (largest(b) > tol),
        steps=jnp.zeros_like(rho, dtype=jnp.int32),
    )
    end = jax.lax.while_loop(unfinished, body, start)
    residual = largest(end.r)
    x = jnp.where(counted | ~active[:, None], end.x, inverse_diagonal * end.r)
    return LinearSolution(x, residual, end.steps, residual <= tol)


class _CGState(NamedTuple):
    step: Int[Array, ""]  # of the loop
    x: Float[Array, "G n"]
    r: Float[Array, "G n"]  # b - A x, by the recurrence
    d: Float[Array, "G n"]  # the direction of the next step
    rho: Float[Array, "G"]  # r . preconditioned r
    active: Bool[Array, "G"]
    steps: Int[Array, "G"]


def bicgstab(
    matvec: Callable[[Array], Array],
    b: Float[Array, "G n"],
    inverse_diagonal: Float[Array, "G n"],
    *,
    tol: Float[Array, "G"],
    max_steps: int,
    active: Bool[Array, "G"],
) -> LinearSolution:
    """Solve A x = b per group from x = 0, for a general A.

    Where the recurrence comes close to breaking down, and a long step would drown x in
    rounding, it takes a step of least residual instead and starts again from there,
    with another shadow residual: A r may be orthogonal to r. The x of the smallest
    residual is returned.

    Reference: van der Vorst, Bi-CGSTAB (1992), preconditioned by the diagonal.
    """

    def dot(a, b):
        return (a * b).sum(-1)

    def over(a, b):
        """a / b, and 0 where b is 0."""
        return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))

    def body(state):
        step, x, r, shadow, d, rho, active, steps, best, best_x = state
        pd = inverse_diagonal * d
        ad = matvec(pd)
        along = dot(shadow, ad)
        weak = jnp.abs(along) < WEAK * jnp.sqrt(dot(shadow, shadow) * dot(ad, ad))
        alpha = jnp.where(weak, 0, over(rho, along))[:, None]
        s = r - alpha * ad
        ps = inverse_diagonal * s
        t = matvec(ps)
        omega = over(dot(t, s), dot(t, t))[:, None]
        x = x + alpha * pd + omega * ps
        r = s - omega * t
        new_rho = dot(shadow, r)
        beta = over(new_rho, rho)[:, None] * over(alpha, omega)
        size = jnp.sqrt(dot(shadow, shadow) * dot(r, r))
        broken = weak | ~(jnp.abs(new_rho) > WEAK * size) | (omega[:, 0] == 0)
        turned = r + over(jnp.sqrt(dot(r, r)), jnp.sqrt(dot(ad, ad)))[:, None] * ad
        restart = jnp.where(weak[:, None], turned, r)
        shadow = jnp.where(broken[:, None], restart, shadow)
        d = jnp.where(broken[:, None], r, r + beta * (d - omega * ad))
        rho = jnp.where(broken, dot(restart, r), new_rho)
        norm = jnp.abs(r).max(-1)
        better = active & (norm < best)
        best = jnp.where(better, norm, best)
        best_x = jnp.where(better[:, None], x, best_x)
        active = active & (best > tol) & jnp.isfinite(norm)
        steps = steps + state.active.astype(jnp.int32)
        return _BiCGSTABState(
            step + 1, x, r, shadow, d, rho, active, steps, best, best_x
        )

    def unfinished(state):
        return (state.step < max_steps) & state.active.any()

    norm = jnp.abs(b).max(-1)
    start = _BiCGSTABState(
        step=jnp.int32(0),
        x=jnp.zeros_like(b),
        r=b,
        shadow=b,
        d=b,
        rho=dot(b, b),
        active=active & (norm > tol),
        steps=jnp.zeros_like(norm, dtype=jnp.int32),
        best=norm,
        best_x=jnp.zeros_like(b),
    )
    end = jax.lax.while_loop(unfinished, body, start)
    return LinearSolution(end.best_x, end.best, end.steps, end.best <= tol)


class _BiCGSTABState(NamedTuple):
    step: Int[Array, ""]  # of the loop
    x: Float[Array, "G n"]
    r: Float[Array, "G n"]  # b - A x, by the recurrence
    shadow: Float[Array, "G n"]  # the shadow residual
    d: Float[Array, "G n"]  # the direction of the next step
    rho: Float[Array, "G"]  # shadow . r
    active: Bool[Array, "G"]
    steps: Int[Array, "G"]
    best: Float[Array, "G"]  # the smallest max|r| so far
    best_x: Float[Array, "G n"]  # and where it was


def solve_adjoint(
    problem: AbstractProblem,
    z: Float[Array, "G n"],
    v: Float[Array, "G n"],
    settings: LinearSettings,
) -> Solution:
    """u with H^T u = v, H = -Dr(z), [G, n]; its residual is computed anew at the end.

    Only what `problem.known_adjoint` leaves of v is solved for, and the tolerance is
    relative to that. Groups past settings.max_relative_residual are NONFINITE with
    value NaN; those between it and the tolerance are MAX_STEPS.
    """
    tol = settings.tolerance(v.dtype)
    known = problem.known_adjoint(v)
    v = v - known
    size = jnp.abs(v).max(-1)
    valid = jnp.isfinite(z).all(-1) & jnp.isfinite(size)
    # Of size 1: squares of the tiny v of a well-trained loss would underflow.
    scale = jnp.where(valid & (size > 0), size, 1)
    z = jnp.where(valid[:, None], z, 0)
    b = jnp.where(valid[:, None], v / scale[:, None], 0)
    h = problem.linearise(z).transposed
    x, relative, steps = _refined(h, b, valid & (size > 0), settings)
    relative = jnp.where(valid, relative, jnp.nan)
    finite = jnp.isfinite(x).all(-1) & jnp.isfinite(relative)
    finite &= relative <= settings.max_relative_residual
    converged = finite & (relative <= tol)
    missed = jnp.where(finite, Result.MAX_STEPS, Result.NONFINITE)
    code = jnp.where(converged, Result.CONVERGED, missed).astype(jnp.int32)
    value = jnp.where(finite[:, None], scale[:, None] * x + known, jnp.nan)
    return Solution(value, code, Stats(steps, scale * relative, converged))


class _Refinement(NamedTuple):
    attempt: Int[Array, ""]
    x: Float[Array, "G n"]
    r: Float[Array, "G n"]  # b - H x, computed anew
    size: Float[Array, "G"]  # max|r|
    steps: Int[Array, "G"]
    active: Bool[Array, "G"]


def _refined(h: Linearisation, b, active, settings: LinearSettings):
    """(x, max|b - H x|, steps), b of size 1; solved again for what an attempt missed.

    Only where the true residual would make the solution count as lost: rounding can
    ruin one attempt in a million.
    """
    goal = jnp.full_like(b[:, 0], 0.5 * settings.tolerance(b.dtype))

    def attempt(state):
        number, x, r, _, steps, active = state
        solved = linear_solve(
            h, r, tol=goal, max_steps=settings.max_steps, active=active
        )
        x = jnp.where(active[:, None], x + solved.x, x)
        r = b - h.matvec(x)
        size = jnp.abs(r).max(-1)
        lost = active & (size > settings.max_relative_residual)
        return _Refinement(number + 1, x, r, size, steps + solved.steps, lost)

    def unfinished(state):
        return (state.attempt < ATTEMPTS) & state.active.any()

    size = jnp.abs(b).max(-1)
    start = _Refinement(
        attempt=jnp.int32(0),
        x=jnp.zeros_like(b),
        r=b,
        size=size,
        steps=jnp.zeros_like(size, dtype=jnp.int32),
        active=active,
    )
    end = jax.lax.while_loop(unfinished, attempt, start)
    return end.x, end.size, end.steps
