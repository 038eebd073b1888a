"""Newton's method with an iterative linear solve."""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from ibnn_jax.core.batching import select
from ibnn_jax.core.iterate import Simple
from ibnn_jax.core.linear_solve import linear_solve
from ibnn_jax.core.options import check_between, check_count, settle
from ibnn_jax.core.problem import AbstractProblem
from ibnn_jax.core.solver import IterativeSolver

SUFFICIENT = 1 - 1e-4  # a step judged by |r| must bring it below this share


@dataclass(frozen=True)
class Newton(IterativeSolver):
    """z <- z + a H^-1 r, with H = -Dr(z); for implicit bias the Hessian of the energy.

    Where r = -grad E and the solution is unique, E is strictly convex along every line.
    A full step that overshoots is then cut back by the secant rule on the slope
    r.delta, which needs no energy values (these drown in rounding near the solution).
    For other problems a step that does not bring |r| down, in the norm in which the
    safe step does, is cut and in the end replaced by the safe step: it converges
    wherever the safe step contracts.

    Where the solution may not be unique the aim is the one that descent reaches from
    the start. There each step is the plain fixed-point step, which for lam > 0 is the
    convex-concave procedure and lowers E from anywhere, until the problem calls the
    residual close (p max|r| < 0.01); then Newton finishes, unless it meets negative
    curvature or fails to reduce the residual.

    Args:
        linear_tol: relative residual of the inner solves.
        linear_steps: most steps of an inner solve.
        cuts: most reductions of one step.

    Raises:
        ValueError: linear_tol not in (0, 1), or a count that is no whole number.

    Reference: Nocedal and Wright, Numerical Optimization (2006), chapter 7; for the
    descent, Yuille and Rangarajan, The concave-convex procedure (2003).
    """

    linear_tol: float = 1e-3
    linear_steps: int = 200
    cuts: int = 8

    # The line search descends the energy, and max|r| may rise for a dozen steps.
    patience: ClassVar[int] = 20

    def __post_init__(self):
        settle(
            self,
            linear_tol=check_between("Newton: linear_tol", self.linear_tol, 0, 1),
            linear_steps=check_count("Newton: linear_steps", self.linear_steps),
            cuts=check_count("Newton: cuts", self.cuts),
        )

    def init(self, problem, z):
        return Simple(z, problem.residual(z))

    def step(self, problem, state, active, unrolled):
        z, r = state
        close = problem.close(r)
        delta, solved = self._direction(problem, z, r, active & close, unrolled)
        if problem.symmetric:
            # An inner solve stopped early still gives a descent direction where E is
            # convex; elsewhere only a good one counts.
            usable = close & (solved | problem.unique)
            fallback = r
        else:
            usable = close
            fallback = problem.precondition(problem.step_sizes(z), r)
        delta = select(usable, delta, fallback)
        search = _Search(problem, z, r, delta, fallback, usable)
        end = _line_search(jax.lax.stop_gradient(search), active, self.cuts)
        if not unrolled:
            return Simple(end.z, end.r)
        direction = select(end.fell_back, fallback, delta)
        z = z + end.scale[:, None] * direction
        return Simple(z, problem.residual(z))

    def _direction(self, problem, z, r, active, unrolled):
        """(delta with H delta = r, whether it was solved to `linear_tol`)."""
        h = problem.linearise(z)
        preconditioner = jax.lax.stop_gradient(h.inverse_diagonal)

        def solve(matvec, b):
            tol = self.linear_tol * jnp.abs(b).max(-1)
            system = replace(h, matvec=matvec, inverse_diagonal=preconditioner)
            solution = linear_solve(
                system, b, tol=tol, max_steps=self.linear_steps, active=active
            )
            return solution.x, solution.ok

        if not unrolled:
            return solve(h.matvec, r)
        # Lets reverse mode differentiate the linear solve, not its iterations.
        return jax.lax.custom_linear_solve(
            h.matvec, r, solve, solve, symmetric=h.symmetric, has_aux=True
        )


class _Search(NamedTuple):
    """A line search from z: along delta, or along the fallback where that fails."""

    problem: AbstractProblem
    z: Float[Array, "G n"]
    r: Float[Array, "G n"]
    delta: Float[Array, "G n"]
    fallback: Float[Array, "G n"]
    usable: Bool[Array, "G"]  # where delta is a Newton step, and not the fallback

    # Both rules return (too long, useless, the factor by which to shorten). A step that
    # is too long is cut; a useless one gives way to the fallback.

    def by_slope(self, r_new, fell_back, last):
        """By the slope r.delta of an energy."""
        weight, unique = self.problem.weight, self.problem.unique
        slope = (weight * self.r * self.delta).sum(-1)
        ratio = (weight * r_new * self.delta).sum(-1) / jnp.where(slope == 0, 1, slope)
        overshot = unique & (ratio < -0.1)
        useless = ~unique & ~fell_back & ~self.smaller(r_new)
        return overshot, useless, jnp.clip(1 / (1 - ratio), 0.1, 0.7)

    def by_norm(self, r_new, fell_back, last):
        """By |r|, for want of an energy."""
        # By a share of itself, so that what is kept converges at least linearly.
        failed = ~fell_back & ~self.smaller(r_new, SUFFICIENT)
        return failed & ~last, failed & last, jnp.full_like(r_new[:, 0], 0.5)

    def smaller(self, r_new, share: float = 1.0) -> Bool[Array, "G"]:
        return self.problem.size(r_new) < share * self.problem.size(self.r)


class _Trial(NamedTuple):
    trials: Int[Array, ""]  # made so far, this one included
    z: Float[Array, "G n"]
    r: Float[Array, "G n"]
    scale: Float[Array, "G"]
    fell_back: Bool[Array, "G"]  # goes along the fallback
    overshot: Bool[Array, "G"]
    useless: Bool[Array, "G"]
    shorten: Float[Array, "G"]


def _line_search(search: _Search, active: Bool[Array, "G"], cuts: int) -> _Trial:
    judge = search.by_slope if search.problem.symmetric else search.by_norm

    def attempt(number, scale, fell_back):
        direction = select(fell_back, search.fallback, search.delta)
        z = search.z + scale[:, None] * direction
        r = search.problem.residual(z)
        overshot, useless, shorten = judge(r, fell_back, number >= cuts - 1)
        bad = (active & overshot, active & useless)
        return _Trial(number + 1, z, r, scale, fell_back, *bad, shorten)

    def retry(trial):
        scale = jnp.where(trial.overshot, trial.scale * trial.shorten, trial.scale)
        if not search.problem.symmetric:
            scale = jnp.where(trial.useless, 1, scale)
        return attempt(trial.trials, scale, trial.fell_back | trial.useless)

    def undecided(trial):
        return (trial.trials <= cuts) & ((trial.overshot | trial.useless).sum() > 0)

    # Not ones_like(r[:, 0]): Pallas kernels, in which this runs too, know no slices.
    whole = jnp.ones_like(active, dtype=search.r.dtype)
    first = attempt(jnp.int32(0), whole, ~search.usable)
    return jax.lax.while_loop(undecided, retry, first)
