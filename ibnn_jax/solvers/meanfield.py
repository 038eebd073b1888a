"""The mean-field solver for uniform coupling: O(n) plus a small problem of fixed size, instead of O(n^2) per step.

Under w = 1/n every neuron of a group sees the same function of its own state,

    z_i = y_i - lam G(z_i),    G(t) = 1/n sum_k sigma(p (z_k - t)),

so z_i = T(y_i) for one increasing function T. The n neurons are replaced by a few weighted points (`ibnn_jax.cells`), the
same equation is solved exactly for these, and B(y) = G(T(y)) is read off at the neurons: z_i = y_i - lam B(y_i). At the
points two derivatives of T are known, T' = 1 / Y' and T'' = -Y'' / Y'^3 with Y(t) = t + lam G(t), so the
interpolation is of sixth order.

The adjoint (I + lam DB) u = v reduces in the same way: with K(t) = p sigma'(p t) and s_i = T'(y_i),

    u_i = s_i (v_i - lam H(z_i)),    H(t) = b(t) - lam sum_l w_l K(z_l - t) x_l,    b(t) = 1/n sum_k s_k v_k K(z_k - t),

where x solves the adjoint system of the points for the right-hand side b.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from ibnn_jax.adjoint import Implicit, solve_adjoint_groups
from ibnn_jax.iterate import package, run, run_where, select
from ibnn_jax.kernels import per_group
from ibnn_jax.operators import Operator, UniformOperator
from ibnn_jax.problem import Problem
from ibnn_jax.sigmas import tanh
from ibnn_jax.solution import Solution
from ibnn_jax.solvers.newton import Newton
from ibnn_jax.solvers.points import (
    LINEAR_TOL,
    Found,
    Points,
    allowed,
    attempt_with,
    bias_by_p,
    bias_of,
    points_again,
    reduced_adjoint,
)


class Kept(NamedTuple):
    """What the adjoint needs of a solution."""

    found: Found
    points: Points  # of the first attempt
    later: list[
        Float[Array, "G 2m+2"]
    ]  # z at the points of the others, in the groups that needed them only
    attempt: Int[
        Array, "G"
    ]  # the one that met the tolerance; their number where none did: the adjoint is solved pairwise


@dataclass(frozen=True)
class MeanField:
    """Newton on 2 * cells + 2 points that stand for a group's neurons, for Uniform couplings; see the module.

    The reported residual is that of the points plus the estimated errors of the quadrature and of the interpolation, so
    it speaks of the equation of the neurons. It has to be below tol (1 + max|y| + |lam|) and below 200 tol / p, unless that is
    beyond rounding. Groups whose estimate exceeds the tolerance (inputs spread over many widths
    1/p, or T steep next to the uniqueness bound) are solved again with more cells, and those that miss it every time
    are finished by pairwise Newton, at O(n^2) per step: always for these groups only.

    Args:
        cells: m of every attempt, increasing; the error falls as m^-4 once p * (range of y) / m < 1. None takes (19, 63, 511)
            on CPUs, and elsewhere (63, 511): there an attempt more costs more than points. Attempts with as many points as
            neurons are left out, so 511 serves groups of more than 1024; each one costs a second or two of compilation.
            On CPUs (19, 47, 95, 511) takes 0.6 of the time where lam stays next to its bound and activations are wide.
        default_tol: the tolerance when `solve` gets none.
        polish: largest n for the pairwise finish; larger groups that miss the tolerance are reported as MAX_STEPS.
        kernels: on NVIDIA GPUs, solve a group's points in one Pallas kernel where there are 16 to 128 of them (7, 15, 31 or
            63 cells) and sigma is tanh; False leaves them to XLA, as on other devices.

    Raises:
        ValueError: cells empty, not increasing, or less than 4.
    """

    cells: tuple[int, ...] | None = None
    default_tol: float = 1e-4
    polish: int = 20_000
    kernels: bool = True

    def __post_init__(self):
        cells = self._attempts()
        if not cells or list(cells) != sorted(set(cells)) or cells[0] < 4:
            raise ValueError(
                f"MeanField: cells must be increasing numbers, the first at least 4; got {self.cells}"
            )

    def _attempts(self) -> tuple[int, ...]:
        if self.cells is None:
            return (19, 63, 511) if jax.default_backend() == "cpu" else (63, 511)
        return self.cells

    @staticmethod
    def fits(op: Operator) -> bool:
        """Whether the coupling is uniform and sigma smooth."""
        return isinstance(op, UniformOperator) and op.sigma.smooth

    def _on_points(self, op: Operator):
        """How to apply a function to the points of every group: `per_group`, or as it is."""
        return (
            per_group
            if self.kernels and op.sigma == tanh
            else lambda f, *arrays: f(*arrays)
        )

    def solve(
        self, problem: Problem, tol: float, max_steps: int
    ) -> tuple[Solution, Kept]:
        """The Solution on groups, and what `pullback` needs of it."""
        problem, valid, span = _prepared(problem)
        threshold = allowed(problem, tol, span)
        on_points = self._on_points(problem.op)

        def retry(count):
            def again(state, problem, span, first):
                found, points = attempt_with(
                    problem, span, count, on_points, tol, max_steps, first
                )
                return found._replace(steps=state[0].steps + found.steps), points.z

            return again

        def pairwise(found, problem, threshold):
            problem, _ = problem.centred()
            # Past the bound the solution that descent reaches from y is meant, not the one next to the interpolated z.
            start = select(
                problem.unique, problem.y - problem.lam * found.bias, problem.y
            )
            z, residual, steps, _ = run(
                Newton(linear_tol=LINEAR_TOL), problem, start, threshold, max_steps
            )
            bias = bias_of(problem, problem.y - z, problem.op.bias(z, problem.p))
            return Found(
                bias,
                found.slope,
                residual,
                jnp.ones_like(found.resolved),
                found.steps + steps,
            )

        def missed(found):
            return valid & ~found.meets(threshold)

        def finish(found, later, attempt):
            solved = []
            for count, z in zip(counts, later):
                found, z = run_where(
                    missed(found),
                    retry(count),
                    (found, z),
                    problem,
                    span,
                    points,
                    side=z.shape[1],
                )
                solved.append(z)
                attempt += missed(found)
            if problem.y.shape[1] <= self.polish:
                found = run_where(
                    missed(found),
                    pairwise,
                    found,
                    problem,
                    threshold,
                    side=problem.y.shape[1],
                )
            return found, solved, attempt

        first, *others = self._attempts()
        found, points = attempt_with(problem, span, first, on_points, tol, max_steps)
        counts = [count for count in others if 2 * count + 2 < problem.y.shape[1]]
        later = [
            jnp.zeros((len(problem.y), 2 * count + 2), problem.y.dtype)
            for count in counts
        ]
        state = found, later, missed(found).astype(jnp.int32)
        if counts or problem.y.shape[1] <= self.polish:
            state = jax.lax.cond(
                missed(found).any(), finish, lambda *state: state, *state
            )
        found, later, attempt = state
        z = problem.y - problem.lam * found.bias
        solution = package(
            problem, valid, z, found.residual, found.residual <= threshold, found.steps
        )
        return solution, Kept(found, points, later, attempt)

    def pullback(self, problem: Problem, kept: Kept, v, options: Implicit) -> Problem:
        """The cotangents of y, lam and p, in the form of a Problem, for the cotangent v of z."""
        problem, valid, span = _prepared(problem)
        valid &= jnp.isfinite(kept.found.residual)
        later = [
            (valid & (kept.attempt == k), z) for k, z in enumerate(kept.later, start=1)
        ]

        def reduced(_, problem, span, found, z, v):
            return reduced_adjoint(
                problem,
                span,
                found,
                points_again(problem, span, z),
                on_points,
                v,
                options,
            )

        def pairwise(_, problem, bias, v):
            as_exact = (
                replace(options, tol=1e-4) if options.tol is None else options
            )  # as exact as z is
            return solve_adjoint_groups(
                problem, problem.y - problem.lam * bias, v, as_exact
            ).value

        def not_solved(ok):
            return valid & ((kept.attempt > len(later)) | ~ok)

        def finish(u, ok):
            for mask, z in later:
                u, ok = run_where(
                    mask,
                    reduced,
                    (u, ok),
                    problem,
                    span,
                    kept.found,
                    z,
                    v,
                    side=z.shape[1],
                )
            return run_where(
                not_solved(ok),
                pairwise,
                u,
                problem,
                kept.found.bias,
                v,
                side=v.shape[1],
            ) if small else u, ok

        small = v.shape[1] <= self.polish
        on_points = self._on_points(problem.op)
        u, ok = reduced_adjoint(
            problem, span, kept.found, kept.points, on_points, v, options
        )
        if later or small:
            u, ok = jax.lax.cond(
                ((kept.attempt > 0) | ~ok).any(), finish, lambda u, ok: (u, ok), u, ok
            )
        exact = not_solved(ok)
        if not small and options.give_up < 1:
            valid &= ~exact  # too large for the pairwise solve: lost, and said so
        # On its own, so that XLA leaves it out where no gradient of p is asked for.
        by_p = bias_by_p(problem, span, kept.points)
        for mask, z in later:
            again = lambda _, problem, span, z: bias_by_p(
                problem, span, points_again(problem, span, z)
            )
            by_p = run_where(mask, again, by_p, problem, span, z, side=z.shape[1])
        if small:

            def along_p(_, problem, bias):
                slope, z = problem.op.sigma.derivative, problem.y - problem.lam * bias
                return problem.op.pair_sum(lambda t, p: slope(p * t, t), z, problem.p)

            by_p = run_where(
                exact, along_p, by_p, problem, kept.found.bias, side=v.shape[1]
            )
        total = lambda f: -(u * f).sum(-1, keepdims=True)
        gradient = Problem(
            u, total(kept.found.bias), problem.lam * total(by_p), problem.op
        )
        return jax.tree.map(lambda g: jnp.where(valid[:, None], g, jnp.nan), gradient)


def _prepared(problem: Problem):
    """(the problem sanitised, which groups were finite, the range of y in them and 0 elsewhere)."""
    span = problem.span()
    problem, valid = problem.sanitised()
    return problem, valid, select(valid, span, jax.tree.map(jnp.zeros_like, span))
