"""A group's neurons reduced to a few points: solve these and read the neurons off.

The same for the adjoint. `ibnn_jax.ibnn.mean_field.solver` states the method and puts
these functions together; every one of them treats all groups alike.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ibnn_jax.ibnn.mean_field.quadrature import Cells, Place, Quadrature
from ibnn_jax.core.iterate import Run
from ibnn_jax.core.linear_solve import LinearSettings
from ibnn_jax.core.solver import SolveSettings
from ibnn_jax.ibnn.equation import IBNNProblem, Span
from ibnn_jax.ibnn.mean_field import point_system
from ibnn_jax.ibnn.mean_field.limits import (
    SLOPE_ERROR,
    limit_of,
    rounding,
    threshold_of,
)

# 1 / p that a cell may span in z for B and its derivatives to be resolved; on trained
# activations attempts of a small enough residual have 3 at most
WIDTHS = 4
# The largest |(u (1 - u))^3 (u - 1/2)| over its slope at u = 1/2
UNEVEN = 0.12
# Least slope Y' that is believed past the uniqueness bound; below it is 1 - lam p
FLAT = 1e-2


class Points(NamedTuple):
    """The solved points of a problem, and at its nodes what interpolation needs."""

    cells: Cells
    quadrature: Quadrature
    z: Float[Array, "G 2m+2"]
    # G and its first two derivatives at the nodes, then Y' and Y'' there
    g: Float[Array, "G m+1"]
    g1: Float[Array, "G m+1"]
    g2: Float[Array, "G m+1"]
    y1: Float[Array, "G m+1"]
    y2: Float[Array, "G m+1"]
    flat: Float[Array, "G 1"]  # where T jumps, Y' is no more than this
    missed: Float[Array, "G"]  # of G, by the quadrature; an estimate

    @property
    def at_nodes(self):
        """z at the nodes."""
        return self.quadrature.at_nodes(self.z)

    @property
    def inner(self):
        """z at the inner points."""
        return self.quadrature.inside(self.z)

    def bias(self):
        """B and its first two derivatives in y, at the nodes."""
        return self.in_y(self.g, self.g1, self.g2)

    def in_y(self, f, f1, f2):
        """f and its first two derivatives in y, at the nodes, from those in z."""
        t1 = 1 / self.y1
        first, second = f1 * t1, (f2 - f1 * self.y2 * t1) * t1**2
        # Past the uniqueness bound T jumps: its derivatives say nothing there,
        # differences do.
        jump = self.y1 <= self.flat
        across = jnp.gradient(f, axis=-1) / self.cells.width  # pyright: ignore
        return f, jnp.where(jump, across, first), jnp.where(jump, 0, second)


class Attempt(NamedTuple):
    """An attempt's outcome per group."""

    z: Float[Array, "G n"]
    bias: Float[Array, "G n"]
    slope: Float[Array, "G n"]
    residual: Float[Array, "G"]
    lost: Float[Array, "G"]  # of the residual, beside what is judged
    resolved: Bool[Array, "G"]  # whether it is good enough for the adjoint
    widths: Float[Array, "G"]  # the most 1 / p that a cell spans in z
    steps: Array

    def meets(self, threshold: Float[Array, "G"]) -> Bool[Array, "G"]:
        """Whether this serves both as the solution and for its adjoint."""
        return (self.residual <= threshold) & self.resolved


class Prepared(NamedTuple):
    """A problem ready to be reduced, and how its points and cells are computed."""

    problem: IBNNProblem  # sanitised
    span: Span  # of y
    on_points: Callable  # (f, *arrays) -> f(how, *arrays), for f of `point_system`
    moments: Callable  # (place, v) -> place.moments(v)


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
    place, quadrature = _stand_ins(prepared, count)
    points, ran = _solve_points(
        prepared, settings, place.cells, quadrature, coarser, final
    )
    bias = place.interpolate(*points.bias())
    slope = 1 - problem.lam * place.interpolate(*points.bias(), slope=True)
    slope_missed, steepest = _slope_missed(prepared, points)
    residual = ran.residual + _error(problem, points, ran.residual, slope_missed)
    # Equal neurons see nothing of each other.
    residual = jnp.where(prepared.span.radius[:, 0] == 0, 0, residual)
    widths = _widths(problem, points)
    sharp = residual <= limit_of(problem, slope, prepared.span)
    sharp &= slope_missed.max(-1) <= SLOPE_ERROR * steepest
    # Past the bound T jumps and no cells resolve it: more of them would not help.
    resolved = (_cells_resolve(problem, widths) & sharp) | ~problem.unique
    z = problem.y - problem.lam * bias
    # The estimate holds what rounding z usually adds; at worst it is three times that.
    lost = 2 * _rounded(points)
    return Attempt(z, bias, slope, residual, lost, resolved, widths, ran.steps), points


def rebuild_points(prepared: Prepared, z: Float[Array, "G 2m+2"]) -> Points:
    """The Points of which only z was kept."""
    count = z.shape[1] // 2 - 1
    place, quadrature = _stand_ins(prepared, count)
    return _points_of(prepared, place.cells, quadrature, z)


def _stand_ins(prepared: Prepared, count: int) -> tuple[Place, Quadrature]:
    """The neurons in `count` cells, and the points that stand for them."""
    place = _locate(prepared, Cells.spanning(prepared.span.radius, count))
    # Whole numbers add up without rounding: a group may be all but equal.
    moments = [m / prepared.problem.y.shape[1] for m in prepared.moments(place, 1.0)]
    return place, place.quadrature(moments)


def _locate(prepared: Prepared, cells: Cells) -> Place:
    """The neurons in the cells, which lie around 0.

    So nothing as large as the shared part of y is subtracted from its like.
    """
    return cells.locate(prepared.problem.y - prepared.span.centre)


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
    # needs, so it is at most a share of their range: one that `_error`, which sees it
    # again at the inner points, can add to itself within `SHARE`.
    share = 2e-4 * (cells.width * cells.count)[:, 0]
    threshold = jnp.minimum(threshold_of(problem, 0.25 * settings.tol, span), share)
    if final:  # as fine as the steepest slope that there may be asks
        steepest = 1 / jnp.maximum(1 - lam * problem.p, 1e-3)
        threshold = jnp.minimum(threshold, 0.5 * limit_of(problem, steepest, span))
    inputs = (quadrature.points, lam, problem.p, quadrature.weights, threshold)
    ran = prepared.on_points(newton, *inputs, *start)
    return _points_of(prepared, cells, quadrature, ran.z), ran


def _points_of(prepared: Prepared, cells: Cells, quadrature: Quadrature, z) -> Points:
    """What follows from z at the points."""
    lam, p = prepared.problem.lam, prepared.problem.p
    t = quadrature.at_nodes(z)
    # The quadrature of f(y) = sigma(p (T(y) - t)) errs by its defect times f'''' / 24,
    # of which the leading term is taken, twice, with the mean slope of T in every cell.
    # At all points, of which the inner ones count.
    steep = p * jnp.diff(t) / cells.width
    quartic = jnp.pad(quadrature.defect * steep**4, ((0, 0), (cells.count + 1, 1)))
    inputs = (z, t, p, quadrature.weights, quartic)
    g, g1, g2, quartic = prepared.on_points(point_system.read, *inputs)
    g = bias_of(prepared.problem, cells.nodes - t, g)
    # Half of what is possible below the bound, for rounding.
    least = jnp.minimum(0.5 * (1 - lam * p), FLAT)
    flat = jnp.where(prepared.problem.unique[:, None], least, FLAT)
    y1, y2 = jnp.maximum(1 + lam * g1, flat), lam * g2
    missed = quartic.max(-1) / 12
    return Points(cells, quadrature, z, g, g1, g2, y1, y2, flat, missed)


def bias_of(problem: IBNNProblem, shift, bias):
    """B from lam B = y - z, the shift, where lam is large.

    z = y - lam B then gives z back, where B(z) would add lam times its error.
    """
    lam = problem.lam
    return jnp.where(strong(problem), shift / jnp.where(lam == 0, 1, lam), bias)


def strong(problem: IBNNProblem) -> Bool[Array, "G 1"]:
    """Where lam multiplies errors of B: |lam| p > 1."""
    return jnp.abs(problem.lam) * problem.p > 1


def _error(
    problem: IBNNProblem,
    points: Points,
    solved_to: Float[Array, "G"],
    slope_missed: Float[Array, "G m"],
) -> Float[Array, "G"]:
    """The estimated residual of the neurons, beside that of the points, `solved_to`.

    It is what the quadrature, the interpolation and rounding leave out.
    """
    rounded = _rounded(points)
    of_quadrature = jnp.abs(problem.lam[:, 0]) * points.missed
    noise = solved_to + rounded
    of_interpolation = _interpolation_error(problem, points, noise, slope_missed)
    return of_quadrature + of_interpolation + rounded


def _rounded(points: Points) -> Float[Array, "G"]:
    """What rounding z adds to the residual of the neurons."""
    lipschitz = 1 + jnp.abs(1 - points.y1).max(-1)  # 1 + |lam| d
    return rounding(lipschitz, jnp.abs(points.cells.nodes).max(-1))


def _interpolation_error(
    problem: IBNNProblem,
    points: Points,
    noise: Float[Array, "G"],
    slope_missed: Float[Array, "G m"],
) -> Float[Array, "G"]:
    """The residual that interpolation leaves, from its error at the inner points.

    Interpolation errs by (u (1 - u))^3, so by up to eight times as much in the middle
    of a cell where the inner point is off it; an error within the noise says nothing.
    Around a crowd in the middle it may err to both sides, by (u - 1/2) times that:
    nothing there, but the slope shows it.
    An error e of one neuron leaves a residual of Y' e; an error that all neurons share
    leaves e. Near the bound Y' is small and both count. Where lam < 0, Y' e overrates a
    shared error, which makes up for the middle of the cells.
    """
    lam, quadrature, y1 = problem.lam, points.quadrature, points.y1
    bias = _inner_place(points).interpolate(*points.bias())
    predicted = quadrature.inside(quadrature.points) - lam * bias
    steepest = jnp.maximum(y1[:, 1:], y1[:, :-1])
    gap = jnp.abs(predicted - points.inner)
    middle = jnp.maximum(4 * quadrature.inner * (1 - quadrature.inner), 0.5)
    more = jnp.maximum(gap - noise[:, None] / steepest, 0) * (middle**-3 - 1)
    gap = jnp.where(quadrature.occupied, gap + jnp.where(lam > 0, more, 0), 0)
    together = (quadrature.inside(quadrature.weights) * gap).sum(-1)
    shared = (jnp.maximum(lam, 0) * problem.p)[:, 0] * together
    # Past the bound T jumps, and slopes say nothing.
    uneven = jnp.where(problem.unique[:, None], UNEVEN * slope_missed, 0)
    gap = jnp.maximum(gap, points.cells.width * uneven)
    return (gap * steepest).max(-1) + shared


def _inner_place(points: Points) -> Place:
    """Where the inner points lie."""
    index = jnp.arange(points.cells.count, dtype=jnp.int32)
    cell = jnp.broadcast_to(index, points.inner.shape)
    return Place(cell, points.quadrature.inner, points.cells)


def _slope_missed(
    prepared: Prepared, points: Points
) -> tuple[Float[Array, "G m"], Float[Array, "G"]]:
    """(by how much interpolation misses the slope of T at the inner points, the
    steepest slope).
    """
    lam, p, quadrature = prepared.problem.lam, prepared.problem.p, points.quadrature
    # With the last point, which has no weight: GPU kernels want powers of two.
    t = points.z[:, points.cells.count + 1 :]
    inputs = (points.z, t, p, quadrature.weights)
    g1 = prepared.on_points(point_system.read_slope, *inputs)[:, :-1]
    slope = 1 / jnp.maximum(1 + lam * g1, points.flat)
    place = _inner_place(points)
    interpolated = 1 - lam * place.interpolate(*points.bias(), slope=True)
    missed = jnp.where(quadrature.occupied, jnp.abs(interpolated - slope), 0)
    return missed, jnp.maximum(slope.max(-1), (1 / points.y1).max(-1))


def _widths(problem: IBNNProblem, points: Points) -> Float[Array, "G"]:
    """The extent in z of the largest occupied cell, in widths 1 / p of the kernel."""
    widths = problem.p * jnp.diff(points.at_nodes)
    return jnp.where(points.quadrature.occupied, widths, 0).max(-1)


def _cells_resolve(problem: IBNNProblem, widths: Float[Array, "G"]) -> Bool[Array, "G"]:
    """Whether the cells are fine enough for the adjoint.

    Where lam is small beside the tolerance any z will do, but not any adjoint: that
    errs by some 0.0015 |lam| p widths^2 once there are more than WIDTHS, and 0.6% are
    accepted.
    """
    strength = (jnp.abs(problem.lam) * problem.p)[:, 0]
    return (widths < WIDTHS) | (strength * widths**2 < 4)


def reduced_adjoint(
    prepared: Prepared, attempt: Attempt, points: Points, v, options: LinearSettings
) -> tuple[Float[Array, "G n"], Bool[Array, "G"]]:
    """(u at the neurons, the groups in which the points' system was solved)."""
    lam, p = prepared.problem.lam, prepared.problem.p
    z, t, weights = points.z, points.at_nodes, points.quadrature.weights
    place = _locate(prepared, points.cells)
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
    return _locate(prepared, points.cells).interpolate(*at_nodes)
