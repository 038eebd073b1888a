"""The forward pass of MeanField: points, then grids, then pairs."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from ibnn_jax.core.batching import run_where, select
from ibnn_jax.core.iterate import Run, package, run
from ibnn_jax.core.solution import Solution
from ibnn_jax.core.solver import SolveSettings
from ibnn_jax.ibnn.equation import IBNNProblem
from ibnn_jax.ibnn.mean_field import ladder, newton, on_grids
from ibnn_jax.ibnn.mean_field.estimate import WIDTHS
from ibnn_jax.ibnn.mean_field.limits import (
    half_ulp,
    limit_of,
    threshold_of,
    threshold_unrounded,
)
from ibnn_jax.ibnn.mean_field.plan import Plan
from ibnn_jax.ibnn.mean_field.points import Points, Prepared, bias_of, strong
from ibnn_jax.ibnn.mean_field.reduced import Attempt, solve_with_cells
from ibnn_jax.solvers.newton import Newton

# On pairs. Its inner solves are relative to the largest residual, an outlier's, beside
# which the others have to be solved too
PAIRS = Newton(linear_tol=0.01)


class Residuals(NamedTuple):
    """What the adjoint needs of a solution."""

    attempt: Attempt  # the outcome of every group
    points: Points  # of the first attempt
    # z at the points of the later attempts, in the groups that needed them only
    later: list[Float[Array, "G 2m+2"]]
    # Which attempt met the tolerance: those on points, then the one on a grid; past the
    # last where the group was solved pairwise, and so will its adjoint be.
    served_by: Int[Array, "G"]
    index: Int[Array, "G"]  # the grid that serves


class _State(NamedTuple):
    attempt: Attempt
    later: list[Float[Array, "G 2m+2"]]
    served_by: Int[Array, "G"]


@dataclass(frozen=True)
class Forward:
    """One solve, on groups."""

    plan: Plan
    settings: SolveSettings
    prepared: Prepared
    valid: Bool[Array, "G"]

    def solve(self) -> tuple[Solution, Residuals]:
        """First attempt, the others where needed, package."""
        problem, threshold = self.problem, self.threshold
        attempt, points = self._first()
        index = self._choose_grid(points)
        state = self._begin(attempt)
        if self.plan.grids or self.plan.cells[1:] or self.plan.pairs:
            state = jax.lax.cond(
                self._missed(attempt).any(),
                lambda state: self._finish(state, points, index),
                lambda state: state,
                state,
            )
        attempt = state.attempt
        # y - lam B is y for lam = 0, but rounds as y does, beside which a strong lam
        # makes z small.
        z = problem.y - problem.lam * attempt.bias
        z = jnp.where(strong(problem), attempt.z, z)
        # What is told of the residual holds more than is judged: rounding, of which
        # `resolves` is the judge, and what neurons see that lie worse than most.
        ran = Run(z, attempt.residual + attempt.extra, attempt.steps, None)
        threshold += attempt.extra
        # Equal neurons are returned as they are, others to half an epsilon.
        largest = jnp.abs(self.prepared.span.centre) + self.prepared.span.radius
        apart = self.prepared.span.radius > 0
        rounded = jnp.where(apart, half_ulp(largest), 0)[:, 0]
        resolved = problem.resolves(rounded, self.settings.tol, self.prepared.span)
        solution = package(problem, self.valid, ran, threshold, resolved)
        return solution, Residuals(attempt, points, state.later, state.served_by, index)

    @property
    def problem(self) -> IBNNProblem:
        return self.prepared.problem

    @property
    def threshold(self) -> Float[Array, "G"]:
        return threshold_of(self.problem, self.settings.tol, self.prepared.span)

    @property
    def threshold_unrounded(self) -> Float[Array, "G"]:
        return threshold_unrounded(self.problem, self.settings.tol, self.prepared.span)

    def _missed(self, attempt: Attempt) -> Bool[Array, "G"]:
        return self.valid & ~attempt.meets(self.threshold)

    def _first(self) -> tuple[Attempt, Points]:
        """The first attempt; before a grid only fine cells count as resolved."""
        first = self.plan.cells[0]
        attempt, points = self._on_points(self.prepared, first)
        if self.plan.grids:
            # Coarse cells may meet the tolerance where lam is small, but they resolve
            # neither B nor its derivatives.
            fine = _fine(attempt) | ~self.problem.unique
            attempt = attempt._replace(resolved=attempt.resolved & fine)
        return attempt, points

    def _on_points(
        self, prepared: Prepared, count: int, coarser: Points | None = None
    ) -> tuple[Attempt, Points]:
        """An attempt with `count` cells."""
        final = not (self.plan.grids or self.plan.pairs)
        return solve_with_cells(prepared, self.settings, count, coarser, final=final)

    def _choose_grid(self, points: Points) -> Int[Array, "G"]:
        """The grid that serves each group; their number where none does."""
        grids = self.plan.grids
        if not grids:
            return jnp.zeros_like(self.threshold, dtype=jnp.int32)
        index = on_grids.choose(self.prepared, points, self.threshold, grids)
        if not self.plan.pairs:
            # No other way is left. A strong lam multiplies what rounds in the sums of
            # so many neurons, and throws them off a grid on their way.
            index = jnp.minimum(index, len(grids) - 1)
            roomiest = ladder.roomiest(index, grids)
            index = jnp.where(strong(self.problem)[:, 0], roomiest, index)
        return index

    def _begin(self, attempt: Attempt) -> _State:
        column = self.problem.y[:, :1]
        later = [
            jnp.zeros_like(jnp.repeat(column, 2 * count + 2, 1))
            for count in self.plan.cells[1:]
        ]
        return _State(attempt, later, self._missed(attempt).astype(jnp.int32))

    def _finish(self, state: _State, points: Points, index) -> _State:
        """More points, grids, pairs: each in the groups that are not solved so far.

        More cells are not tried on groups that would be too wide for them. Where a grid
        follows, which costs less, nor on those that are too wide for the first ones.
        """
        attempt, served_by, solved = state.attempt, state.served_by, []
        grids, (first, *later) = self.plan.grids, self.plan.cells
        for count, z in zip(later, state.later):
            narrow = _fine(state.attempt, 1 if grids else count / first)
            attempt, z = self._retry(count, attempt, z, points, narrow)
            solved.append(z)
            served_by += self._missed(attempt).astype(jnp.int32)
        if grids:
            # Past the bound, and where none serves, that is left to the pairs.
            mask = self._missed(attempt) & self.problem.unique & (index < len(grids))
            if self.plan.pairs:
                wanted, effort = self.threshold, newton.BRIEF
            else:
                wanted, effort = self.threshold_unrounded, newton.THOROUGH
            most = self.settings.max_steps
            operands = (attempt, self.prepared, wanted, most, effort)
            attempt = on_grids.attempt(mask, index, grids, *operands)
            served_by += self._missed(attempt).astype(jnp.int32)
        if self.plan.pairs:
            attempt = run_where(
                self._missed(attempt),
                self._pairwise,
                attempt,
                self.problem,
                self.threshold_unrounded,
                side=self.problem.y.shape[1],
            )
        return _State(attempt, solved, served_by)

    def _retry(self, count: int, attempt: Attempt, z, points: Points, mask):
        """(outcome, z at the points) with more cells, from the first solution."""

        def with_more_cells(state, problem, span, first):
            prepared = self.prepared._replace(problem=problem, span=span)
            attempt, points = self._on_points(prepared, count, first)
            return attempt._replace(steps=state[0].steps + attempt.steps), points.z

        return run_where(
            mask & self._missed(attempt),
            with_more_cells,
            (attempt, z),
            self.problem,
            self.prepared.span,
            points,
            side=z.shape[1],
        )

    def _pairwise(self, attempt: Attempt, problem: IBNNProblem, threshold) -> Attempt:
        """Newton on the neurons themselves."""
        problem, centre = problem.centred()
        # Past the bound the solution that descent reaches from y is meant, not the one
        # next to the interpolated z.
        near = problem.y - problem.lam * attempt.bias
        # From an interpolated z that is off by more than 1 / p, where sigma turns,
        # Newton may go in circles; from its own start it does not. NaN is not less.
        close = problem.p[:, 0] * attempt.residual < 1
        near = select(close, near, problem.start())
        start = select(problem.unique, near, problem.y)
        limit = limit_of(problem, attempt.slope, problem.span())
        wanted = jnp.minimum(threshold, limit)
        ran = run(PAIRS, problem, start, wanted, self.settings.max_steps)
        # The residual of the z that is returned, which adding the centre rounds.
        z = ran.z + centre
        rounded = z - centre
        bias = problem.op.bias(rounded, problem.p)
        residual = jnp.abs(problem.y - problem.lam * bias - rounded)
        residual += 2 * half_ulp(problem.y)
        return attempt._replace(
            z=z,
            bias=bias_of(problem, problem.y - rounded, bias),
            residual=ran.residual,
            extra=jnp.maximum(residual.max(-1) - ran.residual, 0),
            resolved=jnp.ones_like(attempt.resolved),
            steps=attempt.steps + ran.steps,
        )


def _fine(attempt: Attempt, finer: float = 1) -> Bool[Array, "G"]:
    """The groups that are not too wide for their cells, or for so many times more."""
    return attempt.widths < finer * WIDTHS
