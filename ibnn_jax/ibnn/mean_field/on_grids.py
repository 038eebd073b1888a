"""Groups of a problem solved, and their adjoint, on the grids that serve them."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from ibnn_jax.core.linear_solve import LinearSettings
from ibnn_jax.ibnn.equation import IBNNProblem, Span
from ibnn_jax.ibnn.mean_field import ladder, linearised, newton, starts
from ibnn_jax.ibnn.mean_field.limits import half_ulp
from ibnn_jax.ibnn.mean_field.points import Points, Prepared, bias_of
from ibnn_jax.ibnn.mean_field.reduced import Attempt

# Of the adjoint's conjugate gradients, which a Jacobi step then improves; less in
# groups of more neurons, among which the largest error is farther from the mean one
ADJOINT_TOL, USUAL = 5e-3, 1000
# Times the extent of the points, which miss that of the neurons by a little
MARGIN = 1.1


def scaled(
    problem: IBNNProblem, span: Span
) -> tuple[Float[Array, "G n"], Float[Array, "G 1"], Float[Array, "G 1"]]:
    """(p (y - its mean), lam p, the mean)."""
    centred, mean = problem.centred(span)
    return problem.p * centred.y, problem.lam * problem.p, mean


def choose(
    prepared: Prepared, points: Points, threshold: Float[Array, "G"], grids
) -> Int[Array, "G"]:
    """The grid that serves each group, their number where none does."""
    problem, span = prepared.problem, prepared.span
    lam, p = problem.lam, problem.p
    mean = (problem.y - span.centre).mean(-1, keepdims=True)
    most = p * (span.radius + jnp.abs(mean) + jnp.maximum(lam, 0))  # as |B| <= 1
    ends = jnp.concatenate([points.at_nodes[:, :1], points.at_nodes[:, -1:]], -1)
    reached = MARGIN * (p * jnp.abs(ends - mean).max(-1, keepdims=True) + 1)
    extent = jnp.where(jnp.isfinite(reached), jnp.minimum(reached, most), most)
    slope = (1 / points.y1).max(-1, keepdims=True)
    return ladder.choose(extent, lam * p, slope, p * threshold[:, None], grids)


def attempt(
    mask: Bool[Array, "G"],
    index: Int[Array, "G"],
    grids,
    before: Attempt,
    prepared: Prepared,
    threshold: Float[Array, "G"],
    max_steps: int,
    effort: newton.Effort,
) -> Attempt:
    """The outcome on the grids in the groups of `mask`, what was before elsewhere.

    threshold: the residual that is accepted, or less.
    """
    problem, span = prepared.problem, prepared.span

    def on_grid(grid, left, before, y, level, lam, p, threshold):
        at, q = IBNNProblem(y, lam, p, problem.op), lam * p
        x, residual = y - q * before.bias, p * before.residual[:, None]
        x = starts.begin(
            grid, x, y, q, residual, slope=before.slope, hopeless=effort.hopeless
        )
        solved = newton.solve(
            grid,
            y,
            q,
            x,
            tol=0.5 * p * threshold[:, None],
            max_steps=max_steps,
            effort=effort,
            left=left,
        )
        bias = bias_of(at, (y - solved.x) / p, solved.bias)
        z = level + solved.x / p
        now = Attempt(
            z,
            bias,
            solved.slope,
            (solved.residual / p)[:, 0],
            (solved.extra / p)[:, 0],
            solved.resolved[:, 0],
            jnp.zeros_like(before.widths),
            before.steps + solved.steps[:, 0],
        )
        return now, solved.done[:, 0]

    y, _, level = scaled(problem, span)
    operands = (y, level, problem.lam, problem.p, threshold)
    now = ladder.run_in_rounds(mask, index, grids, on_grid, before, *operands)
    extra = jnp.where(mask, now.extra + _rounding(now, span), now.extra)
    return now._replace(extra=extra)


def _rounding(attempt: Attempt, span: Span) -> Float[Array, "G"]:
    """What rounding z adds to the residual.

    Of z itself, and of z and its neighbours' z, each times |q d| = |1 / s - 1|. For
    all groups at once: docs/notes/xla.md#reductions-of-a-few-groups-wait-for-threads.
    """
    z, slope = attempt.z, attempt.slope
    felt = jnp.abs(z) + 2 * jnp.abs(z / slope - z)
    return half_ulp(2 * span.radius[:, 0] + felt.max(-1))


def adjoint(
    mask: Bool[Array, "G"],
    index: Int[Array, "G"],
    grids,
    before: tuple[Float[Array, "G n"], Bool[Array, "G"]],
    prepared: Prepared,
    attempt: Attempt,
    v: Float[Array, "G n"],
    options: LinearSettings,
) -> tuple[Float[Array, "G n"], Bool[Array, "G"]]:
    """(u, whether it solves the adjoint system) in the groups of `mask`."""
    tol = ADJOINT_TOL * min(1, (USUAL / v.shape[1]) ** 0.5)
    tol = tol if options.tol is None else options.tol

    def on_grid(grid, left, before, y, q, bias, slope, v):
        response = linearised.respond(
            grid,
            y - q * bias,
            q,
            slope,
            v,
            tol=tol,
            most=options.max_steps,
            start=before[0],
            left=left,
        )
        # A v that is not finite makes u so, which the pairwise solve cannot mend.
        lost = ~jnp.isfinite(v.max(-1) - v.min(-1))
        return (response.u, response.ok[:, 0] | lost), response.done[:, 0] | lost

    y, q, _ = scaled(prepared.problem, prepared.span)
    operands = (y, q, attempt.bias, attempt.slope, v)
    return ladder.run_in_rounds(mask, index, grids, on_grid, before, *operands)


def bias_by_p(
    mask: Bool[Array, "G"],
    index: Int[Array, "G"],
    grids,
    before: Float[Array, "G n"],
    prepared: Prepared,
    bias: Float[Array, "G n"],
) -> Float[Array, "G n"]:
    """dB/dp at the neurons in the groups of `mask`."""

    def on_grid(grid, _, y, q, p, bias):
        return linearised.moment(grid, y - q * bias) / p

    y, q, _ = scaled(prepared.problem, prepared.span)
    operands = (y, q, prepared.problem.p, bias)
    return ladder.run_on_grids(mask, index, grids, on_grid, before, *operands)
