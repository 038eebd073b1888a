"""Newton's method on the energy, with conjugate gradients."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ibnn_jax.iterate import Simple, Solver, select
from ibnn_jax.linear import conjugate_gradient


@dataclass(frozen=True)
class Newton(Solver):
    """z <- z + a H^-1 r, with H = I + lam DB(z) the Hessian and r = -grad E the residual.

    Below the uniqueness bound E is strictly convex along every line, so a full step that overshoots is cut back by
    the secant rule on the slope r.delta, which needs no energy values (these drown in rounding near the solution).

    Past the bound the aim is the solution that descent reaches from z = y. There each step is the Picard step,
    which for lam > 0 is the convex-concave procedure and lowers E from anywhere, until p max|r| < 0.01;
    then Newton finishes, unless it meets negative curvature or fails to reduce the residual.

    Args:
        linear_tol: relative residual of the inner solves.
        linear_steps: most steps of an inner solve.
        cuts: most reductions of one step.

    Reference: Nocedal and Wright, Numerical Optimization (2006), chapter 7; for the descent, Yuille and
    Rangarajan, The concave-convex procedure (2003).
    """

    linear_tol: float = 1e-3
    linear_steps: int = 200
    cuts: int = 8

    def init(self, problem, z):
        return Simple(z, problem.residual(z))

    def step(self, problem, state, active, unrolled):
        z, r = state
        unique = problem.unique
        norm = jnp.abs(r).max(-1)
        newton = unique | (norm * problem.p.squeeze(-1) < 0.01)

        def solve(matvec, b):
            tol = self.linear_tol * jnp.abs(b).max(-1)
            found = conjugate_gradient(
                matvec,
                b,
                preconditioner,
                tol=tol,
                max_steps=self.linear_steps,
                active=active & newton,
                weight=problem.op.weight,
            )
            return found.x, found.ok

        hessian, preconditioner = problem.hessian(z)
        preconditioner = jax.lax.stop_gradient(preconditioner)
        if (
            unrolled
        ):  # lets reverse mode differentiate the linear solve, not its iterations
            delta, ok = jax.lax.custom_linear_solve(
                hessian, r, solve, symmetric=True, has_aux=True
            )
        else:
            delta, ok = solve(hessian, r)
        # An inner solve stopped early still gives a descent direction below the bound; past it, only a good one counts.
        newton &= ok | unique
        delta = select(newton, delta, r)
        found = self._line_search(
            *jax.lax.stop_gradient((problem, z, r, delta)), newton, active
        )
        if not unrolled:
            return Simple(found.z, found.r)
        z = z + found.scale[:, None] * select(found.picard, r, delta)
        return Simple(z, problem.residual(z))

    def _line_search(self, problem, z, r, delta, newton, active):
        unique = problem.unique
        slope = (problem.op.weight * r * delta).sum(-1)

        def attempt(k, scale, picard):
            candidate = z + scale[:, None] * select(picard, r, delta)
            r_new = problem.residual(candidate)
            ratio = (problem.op.weight * r_new * delta).sum(-1) / jnp.where(
                slope == 0, 1, slope
            )
            overshot = unique & (ratio < -0.1)
            useless = ~unique & ~picard & (jnp.abs(r_new).max(-1) >= jnp.abs(r).max(-1))
            return _Attempt(
                k + 1,
                candidate,
                r_new,
                scale,
                picard,
                active & overshot,
                active & useless,
                ratio,
            )

        def retry(a):
            shrunk = a.scale * jnp.clip(1 / (1 - a.ratio), 0.1, 0.7)
            return attempt(
                a.k, jnp.where(a.overshot, shrunk, a.scale), a.picard | a.useless
            )

        first = attempt(0, jnp.ones_like(slope), ~newton)
        return jax.lax.while_loop(
            lambda a: (a.k <= self.cuts) & ((a.overshot | a.useless).sum() > 0),
            retry,
            first,
        )


class _Attempt(NamedTuple):
    k: Array
    z: Array
    r: Array
    scale: Array
    picard: Array
    overshot: Array
    useless: Array
    ratio: Array
