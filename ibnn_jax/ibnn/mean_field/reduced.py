"""A group's neurons reduced to a few points: solve these and read the neurons off.

The same for the adjoint. `ibnn_jax.ibnn.mean_field.solver` states the method and puts
these functions together; every one of them treats all groups alike.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ibnn_jax.core.iterate import Run
from ibnn_jax.core.linear_solve import LinearSettings
from ibnn_jax.core.solver import SolveSettings
from ibnn_jax.ibnn.equation import Span
from ibnn_jax.ibnn.mean_field import point_system
from ibnn_jax.ibnn.mean_field.estimate import cells_resolve, errors_of, widths_of
from ibnn_jax.ibnn.mean_field.limits import SLOPE_ERROR, limit_of, threshold_of
from ibnn_jax.ibnn.mean_field.points import (
    Points,
    Prepared,
    locate,
    points_of,
    stand_ins,
)
from ibnn_jax.ibnn.mean_field.quadrature import Cells, Quadrature


class Attempt(NamedTuple):
    """An attempt's outcome per group."""

    z: Float[Array, "G n"]
    bias: Float[Array, "G n"]
    slope: Float[Array, "G n"]
    residual: Float[Array, "G"]
    extra: Float[Array, "G"]  # told of the residual, beside what is judged
    resolved: Bool[Array, "G"]  # whether it is good enough for the adjoint
    widths: Float[Array, "G"]  # the most 1 / p that a cell spans in z
    steps: Array

    def meets(self, threshold: Float[Array, "G"]) -> Bool[Array, "G"]:
        """Whether this serves both as the solution and for its adjoint."""
        return (self.residual <= threshold) & self.resolved


def solve_with_cells(
    prepared: Prepared,
    settings: SolveSettings,
    count: int,
    coarser: Points | None = None,
    *,
    final: bool,
) -> tuple[Attempt, Points]:
    """Solve with `count` cells, from the solution with fewer where there is one.

    Args:
        final: neither grids nor pairs will solve what this leaves.
    """
    problem = prepared.problem
    place, quadrature = stand_ins(prepared, count)
    points, ran = _solve_points(
        prepared, settings, place.cells, quadrature, coarser, final
    )
    bias = place.interpolate(*points.bias())
    slope = 1 - problem.lam * place.interpolate(*points.bias(), slope=True)
    errors = errors_of(prepared, points, ran.residual)
    residual = ran.residual + errors.residual
    # Equal neurons see nothing of each other.
    residual = jnp.where(prepared.span.radius[:, 0] == 0, 0, residual)
    widths = widths_of(problem, points)
    sharp = residual <= limit_of(problem, slope, prepared.span)
    sharp &= errors.slope <= SLOPE_ERROR
    # Past the bound T jumps and no cells resolve it: more of them would not help.
    resolved = (cells_resolve(problem, widths) & sharp) | ~problem.unique
    z = problem.y - problem.lam * bias
    # The estimate holds what rounding z usually adds; at worst it is three times that.
    extra = 2 * errors.rounding
    return Attempt(z, bias, slope, residual, extra, resolved, widths, ran.steps), points


def _solve_points(
    prepared: Prepared,
    settings: SolveSettings,
    cells: Cells,
    quadrature: Quadrature,
    coarser: Points | None,
    final: bool,
) -> tuple[Points, Run]:
    """Newton on the points, from their own start or from coarser cells' solution."""
    problem, lam = prepared.problem, prepared.problem.lam

    def newton(how, *arrays):
        return point_system.solve(how, *arrays, max_steps=settings.max_steps)

    start = []
    if coarser is not None:
        y = quadrature.points
        guess = y - lam * coarser.cells.locate(y).interpolate(*coarser.bias())
        start = [jnp.where(problem.unique[:, None] & jnp.isfinite(guess), guess, y)]
    radius = -cells.nodes[:, :1]
    span = Span(jnp.zeros_like(radius), radius)
    # The tolerance leaves nearly equal neurons room for any slope, which the adjoint
    # needs, so it is at most a share of their range: one that `errors_of`, which
    # sees it again at the inner points, can add to itself within `SHARE`.
    share = 2e-4 * (cells.width * cells.count)[:, 0]
    threshold = jnp.minimum(threshold_of(problem, 0.25 * settings.tol, span), share)
    if final:  # as fine as the steepest slope that there may be asks
        steepest = 1 / jnp.maximum(1 - lam * problem.p, 1e-3)
        threshold = jnp.minimum(threshold, 0.5 * limit_of(problem, steepest, span))
    inputs = (quadrature.points, lam, problem.p, quadrature.weights, threshold)
    ran = prepared.on_points(newton, *inputs, *start)
    return points_of(prepared, cells, quadrature, ran.z), ran


def reduced_adjoint(
    prepared: Prepared, attempt: Attempt, points: Points, v, options: LinearSettings
) -> tuple[Float[Array, "G n"], Bool[Array, "G"]]:
    """(u at the neurons, the groups in which the points' system was solved)."""
    lam, p = prepared.problem.lam, prepared.problem.p
    z, t, weights = points.z, points.at_nodes, points.quadrature.weights
    place = locate(prepared, points.cells)
    # b is the sum of charges and dipoles at the nodes.
    moments = prepared.moments(place, attempt.slope * v / v.shape[1])
    charge, dipole = place.spread(moments)
    dipole = p * dipole / points.y1

    def conjugate(how, *arrays):
        tol = 1e-3 if options.tol is None else options.tol
        most = options.max_steps
        return point_system.respond(how, *arrays, tol=tol, max_steps=most)

    inputs = (z, t, lam, p, weights, charge, dipole)
    x, ok, size = prepared.on_points(conjugate, *inputs)
    rest = ((0, 0), (0, z.shape[1] - charge.shape[1]))
    charge = jnp.pad(charge, rest) - lam * weights * x
    inputs = (z, t, p, charge, jnp.pad(dipole, rest))
    h = points.in_y(*prepared.on_points(point_system.read_response, *inputs))
    u = attempt.slope * (v - lam * place.interpolate(*h))
    # A v that is not finite makes u so, which the pairwise solve cannot mend.
    return u, ok | ~jnp.isfinite(size)


def bias_by_p(prepared: Prepared, points: Points) -> Float[Array, "G n"]:
    """dB_i / dp = 1/n sum_k (z_k - z_i) sigma'(p (z_k - z_i)) at the neurons."""
    problem, weights = prepared.problem, points.quadrature.weights
    inputs = (points.z, points.at_nodes, problem.p, weights)
    at_nodes = points.in_y(*prepared.on_points(point_system.read_by_p, *inputs))
    return locate(prepared, points.cells).interpolate(*at_nodes)
