"""The adjoint of MeanField: on what met the tolerance: points, a grid, or pairs."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ibnn_jax.core.batching import run_where
from ibnn_jax.core.linear_solve import LinearSettings, solve_adjoint
from ibnn_jax.ibnn.equation import IBNNProblem
from ibnn_jax.ibnn.mean_field import on_grids
from ibnn_jax.ibnn.mean_field.estimate import WIDTHS
from ibnn_jax.ibnn.mean_field.forward import Residuals
from ibnn_jax.ibnn.mean_field.plan import Plan
from ibnn_jax.ibnn.mean_field.points import Prepared, rebuild_points
from ibnn_jax.ibnn.mean_field.reduced import bias_by_p, reduced_adjoint

# As WIDTHS, for dB / dp, whose kernel x sech^2 x turns faster
WIDTHS_BY_P = 1


@dataclass(frozen=True)
class Pullback:
    """One adjoint solve, on groups."""

    plan: Plan
    prepared: Prepared
    valid: Bool[Array, "G"]
    residuals: Residuals
    options: LinearSettings

    def apply(self, v: Float[Array, "G n"]) -> IBNNProblem:
        """The cotangents of y, lam and p, in the form of a problem.

        H 1 = 1 and sum_i u_i = sum_i v_i, so only v - mean(v) is solved for. And
        sum_i B_i = sum_i dB_i / dp = 0, so the mean of u has no part in the sums for
        lam and p, where it would multiply the errors of B and dB / dp.
        """
        attempt, problem = self.residuals.attempt, self.prepared.problem
        valid = self.valid & jnp.isfinite(attempt.residual)
        level = v.mean(-1, keepdims=True)
        v = v - level
        u, ok, bias = self._solve(v, valid)
        exact = self._unsolved(valid, ok)
        if not self.plan.pairs and self.options.max_relative_residual < 1:
            valid &= ~exact  # too large for the pairwise solve: lost, and said so

        u = u - u.mean(-1, keepdims=True)

        def total(f):
            return -(u * f).sum(-1, keepdims=True)

        # Each on its own, so that XLA leaves out what no gradient is asked for.
        by_p = total(self._bias_by_p(valid, exact))
        by_lam = total(bias)
        gradient = IBNNProblem(u + level, by_lam, problem.lam * by_p, problem.op)
        return jax.tree.map(lambda g: jnp.where(valid[:, None], g, jnp.nan), gradient)

    def _solve(
        self, v, valid
    ) -> tuple[Float[Array, "G n"], Bool[Array, "G"], Float[Array, "G n"]]:
        """(u, whether u solves the adjoint system of the group, B at the neurons)."""
        attempt, points = self.residuals.attempt, self.residuals.points
        # Also where grids solved all: it takes little, a branch costs the others more.
        u, ok = reduced_adjoint(self.prepared, attempt, points, v, self.options)
        if not (self.plan.grids or self.residuals.later or self.plan.pairs):
            return u, ok, attempt.bias
        # One branch for all that few groups need: a GPU waits for each.
        needed = (self.residuals.served_by > 0) | ~ok | (attempt.widths > WIDTHS)
        return jax.lax.cond(
            needed.any(),
            lambda u, ok, bias: self._finish(u, ok, v, valid),
            lambda *solved: solved,
            u,
            ok,
            attempt.bias,
        )

    def _later(self, valid):
        """(the groups that it solved, z at its points) of every later attempt."""
        numbered = enumerate(self.residuals.later, start=1)
        return [(valid & (self.residuals.served_by == k), z) for k, z in numbered]

    def _on_grid(self, valid) -> Bool[Array, "G"]:
        """The groups that a grid solved."""
        if not self.plan.grids:
            return jnp.zeros_like(valid)
        return valid & (self.residuals.served_by == 1 + len(self.residuals.later))

    def _unsolved(self, valid, ok) -> Bool[Array, "G"]:
        """Groups that neither points nor a grid served, forward or backward."""
        last = len(self.residuals.later) + bool(self.plan.grids)
        return valid & ((self.residuals.served_by > last) | ~ok)

    def _finish(self, u, ok, v, valid):
        """`_solve`: the groups of later attempts and grids on their own, the rest
        pairwise.
        """

        def on_points(_, problem, span, attempt, z, v):
            prepared = self.prepared._replace(problem=problem, span=span)
            points = rebuild_points(prepared, z)
            return reduced_adjoint(prepared, attempt, points, v, self.options)

        problem, span = self.prepared.problem, self.prepared.span
        attempt = self.residuals.attempt
        for mask, z in self._later(valid):
            side = z.shape[1]
            operands = (problem, span, attempt, z, v)
            u, ok = run_where(mask, on_points, (u, ok), *operands, side=side)
        if self.plan.grids:
            mask, index = self._on_grid(valid), self.residuals.index
            operands = (self.prepared, attempt, v, self.options)
            u, ok = on_grids.adjoint(mask, index, self.plan.grids, (u, ok), *operands)
        if self.plan.pairs:
            mask, side = self._unsolved(valid, ok), v.shape[1]
            u = run_where(mask, self._pairwise, u, problem, attempt.bias, v, side=side)
        return u, ok, self._bias(valid & ~self._unsolved(valid, ok))

    def _pairwise(self, _, problem: IBNNProblem, bias, v):
        options = self.options
        if options.tol is None:
            options = replace(options, tol=1e-4)  # as exact as z is
        return solve_adjoint(problem, _centred_z(problem, bias), v, options).value

    def _bias(self, on_points) -> Float[Array, "G n"]:
        """B at the neurons; over pairs where the points do not resolve it.

        Where lam is small they need not for z, but do for the sum for lam.
        """
        attempt, n = self.residuals.attempt, self.prepared.problem.y.shape[1]
        if not self.plan.pairs:
            return attempt.bias

        def pairwise(bias, problem):
            return problem.op.bias(_centred_z(problem, bias), problem.p)

        mask = on_points & (attempt.widths > WIDTHS)
        return run_where(mask, pairwise, attempt.bias, self.prepared.problem, side=n)

    def _bias_by_p(self, valid, exact) -> Float[Array, "G n"]:
        """dB/dp at the neurons: from the points that served each group; where they do
        not resolve it through a grid, or over pairs.
        """
        problem, span = self.prepared.problem, self.prepared.span
        attempt, index = self.residuals.attempt, self.residuals.index

        def on_points(_, problem, span, z):
            prepared = self.prepared._replace(problem=problem, span=span)
            return bias_by_p(prepared, rebuild_points(prepared, z))

        def pairwise(_, problem, bias):
            slope, z = problem.op.sigma.derivative, _centred_z(problem, bias)
            return problem.op.pair_sum(lambda t, p: slope(p * t, t), z, problem.p)

        by_p = bias_by_p(self.prepared, self.residuals.points)
        for mask, z in self._later(valid):
            by_p = run_where(mask, on_points, by_p, problem, span, z, side=z.shape[1])
        rest = exact | (valid & (attempt.widths > WIDTHS_BY_P))
        if self.plan.grids:
            served = (index < len(self.plan.grids)) & problem.unique
            mask = self._on_grid(valid) | (rest & served)
            operands = (self.prepared, attempt.bias)
            by_p = on_grids.bias_by_p(mask, index, self.plan.grids, by_p, *operands)
            rest &= ~mask
        if self.plan.pairs:
            side = by_p.shape[1]
            by_p = run_where(rest, pairwise, by_p, problem, attempt.bias, side=side)
        return by_p


def _centred_z(problem: IBNNProblem, bias) -> Float[Array, "G n"]:
    """z of the centred problem, whose small numbers round less."""
    return problem.centred()[0].y - problem.lam * bias
