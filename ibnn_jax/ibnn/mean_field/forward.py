"""The forward pass of MeanField: points, then grids, then pairs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from ibnn_jax.core.batching import run_where, select
from ibnn_jax.core.iterate import Run, package, run
from ibnn_jax.core.solution import Solution
from ibnn_jax.core.solver import SolveSettings
from ibnn_jax.ibnn.equation import IBNNProblem, Span
from ibnn_jax.ibnn.mean_field import on_grids
from ibnn_jax.ibnn.mean_field.point_system import LINEAR_TOL
from ibnn_jax.ibnn.mean_field.reduced import (
    WIDTHS,
    Attempt,
    Points,
    Setting,
    bias_of,
    solve_with_cells,
    threshold_of,
    wanted_of,
)
from ibnn_jax.solvers.newton import Newton

if TYPE_CHECKING:
    from ibnn_jax.ibnn.mean_field.solver import MeanField


class Residuals(NamedTuple):
    """What the adjoint needs of a solution."""

    attempt: Attempt  # the outcome of every group
    points: Points  # of the first attempt
    # z at the points of the later attempts, in the groups that needed them only
    later: list[Float[Array, "G 2m+2"]]
    # Which attempt met the tolerance: those on points, then the one on a grid; past the
    # last where the group was solved pairwise, and so will its adjoint be.
    number: Int[Array, "G"]
    grid: Int[Array, "G"]  # the grid that serves


class _State(NamedTuple):
    attempt: Attempt
    later: list[Float[Array, "G 2m+2"]]
    number: Int[Array, "G"]


def prepare(
    problem: IBNNProblem, settings: SolveSettings | None, on_points, moments
) -> tuple[Setting, Bool[Array, "G"]]:
    """(the problem sanitised, with the range of y, which groups were finite)."""
    span = problem.span()
    problem, valid = problem.sanitised()
    span = Span(*select(valid, span, jax.tree.map(jnp.zeros_like, span)))
    tol, max_steps = (settings.tol, settings.max_steps) if settings else (0.0, 0)
    return Setting(problem, span, tol, max_steps, on_points, moments), valid


@dataclass(frozen=True)
class Forward:
    """One solve, on groups."""

    solver: "MeanField"
    setting: Setting
    valid: Bool[Array, "G"]

    def solve(self) -> tuple[Solution, Residuals]:
        """First attempt, the others where needed, package."""
        problem, threshold = self.problem, self.threshold
        attempt, points = self._first()
        grid = self._choose_grid(points)
        state = self._begin(attempt)
        if self.grids or self.cells[1:] or self.small:
            state = jax.lax.cond(
                self._missed(attempt).any(),
                lambda state: self._finish(state, points, grid),
                lambda state: state,
                state,
            )
        attempt = state.attempt
        z = problem.y - problem.lam * attempt.bias
        ran = Run(z, attempt.residual, attempt.steps, None)
        # Equal neurons are returned as they are, others to half an epsilon.
        largest = jnp.abs(self.setting.span.centre) + self.setting.span.radius
        eps = float(jnp.finfo(z.dtype).eps)
        lost = jnp.where(self.setting.span.radius > 0, 0.5 * eps * largest, 0)[:, 0]
        resolved = problem.resolves(lost, self.setting.tol, self.setting.span)
        solution = package(problem, self.valid, ran, threshold, resolved)
        return solution, Residuals(attempt, points, state.later, state.number, grid)

    @property
    def problem(self) -> IBNNProblem:
        return self.setting.problem

    @property
    def threshold(self) -> Float[Array, "G"]:
        return threshold_of(self.problem, self.setting.tol, self.setting.span)

    @property
    def grids(self):
        return self.solver.grids(self.problem)

    @property
    def cells(self) -> tuple[int, ...]:
        """The cells of every attempt on points."""
        return self.solver.attempts(self.problem)

    @property
    def small(self) -> bool:
        """Whether the group may be solved pairwise."""
        return self.problem.y.shape[1] <= self.solver.pairwise_max_size

    def _missed(self, attempt: Attempt) -> Bool[Array, "G"]:
        return self.valid & ~attempt.meets(self.threshold)

    def _first(self) -> tuple[Attempt, Points]:
        """The first attempt; before a grid only fine cells count as resolved."""
        attempt, points = solve_with_cells(self.setting, self.cells[0])
        if self.grids:
            # Coarse cells may meet the tolerance where lam is small, but they resolve
            # neither B nor its derivatives.
            fine = _fine(attempt) | ~self.problem.unique
            attempt = attempt._replace(resolved=attempt.resolved & fine)
        return attempt, points

    def _choose_grid(self, points: Points) -> Int[Array, "G"]:
        """The grid that serves each group; their number where none does."""
        if not self.grids:
            return jnp.zeros_like(self.threshold, dtype=jnp.int32)
        grid = on_grids.choose(self.setting, points, self.threshold, self.grids)
        if not self.small:
            grid = jnp.minimum(grid, len(self.grids) - 1)  # no other way is left
        return grid

    def _begin(self, attempt: Attempt) -> _State:
        column = self.problem.y[:, :1]
        later = [
            jnp.zeros_like(jnp.repeat(column, 2 * count + 2, 1))
            for count in self.cells[1:]
        ]
        return _State(attempt, later, self._missed(attempt).astype(jnp.int32))

    def _finish(self, state: _State, points: Points, grid) -> _State:
        """More points, grids, pairs: each in the groups that are not solved so far.

        Groups that are too wide for their cells go to the grids at once.
        """
        attempt, number, solved = state.attempt, state.number, []
        more = _fine(attempt) if self.grids else jnp.ones_like(attempt.resolved)
        for count, z in zip(self.cells[1:], state.later):
            attempt, z = self._retry(count, attempt, z, points, more)
            solved.append(z)
            number += self._missed(attempt).astype(jnp.int32)
        if self.grids:
            # Past the bound, and where none serves, that is left to the pairs.
            mask = self._missed(attempt) & self.problem.unique
            mask &= grid < len(self.grids)
            attempt = on_grids.attempt(
                mask, grid, self.grids, attempt, self.setting, self.threshold
            )
            number += self._missed(attempt).astype(jnp.int32)
        if self.small:
            attempt = run_where(
                self._missed(attempt),
                self._pairwise,
                attempt,
                self.problem,
                wanted_of(self.problem, self.setting.tol, self.setting.span),
                side=self.problem.y.shape[1],
            )
        return _State(attempt, solved, number)

    def _retry(self, count: int, attempt: Attempt, z, points: Points, mask):
        """(outcome, z at the points) with more cells, from the first solution."""

        def again(state, problem, span, first):
            setting = self.setting._replace(problem=problem, span=span)
            attempt, points = solve_with_cells(setting, count, first)
            return attempt._replace(steps=state[0].steps + attempt.steps), points.z

        return run_where(
            mask & self._missed(attempt),
            again,
            (attempt, z),
            self.problem,
            self.setting.span,
            points,
            side=z.shape[1],
        )

    def _pairwise(self, attempt: Attempt, problem: IBNNProblem, threshold) -> Attempt:
        """Newton on the neurons themselves."""
        problem, _ = problem.centred()
        # Past the bound the solution that descent reaches from y is meant, not the one
        # next to the interpolated z.
        near = problem.y - problem.lam * attempt.bias
        # From an interpolated z that is off by more than 1 / p, where sigma turns,
        # Newton may go in circles; from its own start it does not. NaN is not less.
        close = problem.p[:, 0] * attempt.residual < 1
        near = select(close, near, problem.start())
        start = select(problem.unique, near, problem.y)
        newton = Newton(linear_tol=LINEAR_TOL)
        ran = run(newton, problem, start, threshold, self.setting.max_steps)
        bias = bias_of(problem, problem.y - ran.z, problem.op.bias(ran.z, problem.p))
        return attempt._replace(
            bias=bias,
            residual=ran.residual,
            resolved=jnp.ones_like(attempt.resolved),
            steps=attempt.steps + ran.steps,
        )


def _fine(attempt: Attempt) -> Bool[Array, "G"]:
    """The groups that are not too wide for their cells."""
    return attempt.widths < WIDTHS
