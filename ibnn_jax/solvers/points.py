"""A group's neurons reduced to a few points: solve these, read the neurons off, and the same for the adjoint.

What `ibnn_jax.solvers.meanfield` states and puts together; every function here treats all groups alike.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ibnn_jax.adjoint import Implicit
from ibnn_jax.cells import Cells, Place, Quadrature
from ibnn_jax.iterate import Run, collapsed_start, run
from ibnn_jax.linear import conjugate_gradient
from ibnn_jax.operators import PointsOperator, UniformOperator
from ibnn_jax.problem import Problem, Span
from ibnn_jax.sigmas import Sigma
from ibnn_jax.solvers.newton import Newton

LINEAR_TOL = 0.05  # of Newton's inner solves: the starts are good, and the tolerance is not tight
WIDTHS = 10  # 1 / p that a cell may span in z; on trained activations attempts of a small enough residual have 3 at most
MOST_STEPS = 30  # of Newton on the points: past it weightless ones go in circles, or rounding holds all of them up
FLAT = 1e-2  # least slope Y' that is believed; below the uniqueness bound it is at least 1 - lam p


class Points(NamedTuple):
    """The solved points of a problem, and at its nodes what interpolation needs."""

    cells: Cells
    quadrature: Quadrature
    z: Float[Array, "G 2m+2"]
    g: Float[
        Array, "G m+1"
    ]  # G and its first two derivatives at the nodes, then Y' and Y'' there
    g1: Float[Array, "G m+1"]
    g2: Float[Array, "G m+1"]
    y1: Float[Array, "G m+1"]
    y2: Float[Array, "G m+1"]

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
        # Past the uniqueness bound T jumps: its derivatives say nothing there, differences do.
        jump = self.y1 <= FLAT
        across = jnp.gradient(f, axis=-1) / self.cells.step
        return f, jnp.where(jump, across, first), jnp.where(jump, 0, second)


class Found(NamedTuple):
    """An attempt's outcome per group."""

    bias: Float[Array, "G n"]
    slope: Float[Array, "G n"]
    residual: Float[Array, "G"]
    resolved: Bool[Array, "G"]  # whether its cells are fine enough for derivatives
    steps: Array

    def meets(self, threshold: Float[Array, "G"]) -> Bool[Array, "G"]:
        """Whether this serves both as the solution and for its adjoint."""
        return (self.residual <= threshold) & self.resolved


def allowed(problem: Problem, tol: float, span: Span) -> Float[Array, "G"]:
    """The residual that is accepted: `problem.tolerance`, and at most 200 tol / p where rounding allows that.

    sigma(p .) turns within 1 / p, so that a larger error, which is little beside wide y, would leave nothing of the gradient.
    """
    least = 4 * _rounding(problem, span.radius[:, 0])
    return jnp.minimum(
        problem.tolerance(tol, span), jnp.maximum(200 * tol / problem.p[:, 0], least)
    )


def attempt_with(
    problem: Problem,
    span: Span,
    count: int,
    on_points,
    tol: float,
    max_steps: int,
    coarser: Points | None = None,
):
    """Solve with `count` cells, from the solution with fewer: Found, Points."""
    place, quadrature = _stand_ins(problem, span, count)
    points, found = _solve_points(
        problem, place.cells, quadrature, on_points, 0.25 * tol, max_steps, coarser
    )
    bias = place.interpolate(*points.bias())
    slope = 1 - problem.lam * place.interpolate(*points.bias(), slope=True)
    return Found(
        bias,
        slope,
        found.residual + _error(problem, points),
        _resolved(problem, points),
        found.steps,
    ), points


def points_again(problem: Problem, span: Span, z: Float[Array, "G 2m+2"]) -> Points:
    """The Points of which only z was kept."""
    place, quadrature = _stand_ins(problem, span, z.shape[1] // 2 - 1)
    return _points_of(problem, place.cells, quadrature, z)


def _stand_ins(problem: Problem, span: Span, count: int) -> tuple[Place, Quadrature]:
    """The neurons in `count` cells, and the points that stand for them."""
    place = _neurons(problem, span, Cells.spanning(span.radius, count))
    return place, place.quadrature(1 / problem.y.shape[1])


def _neurons(problem: Problem, span: Span, cells: Cells) -> Place:
    """The neurons in the cells, which lie around 0: nothing as large as the shared part of y is subtracted from its like."""
    return cells.locate(problem.y - span.centre)


def _solve_points(
    problem, cells, quadrature, on_points, tol, max_steps, coarser=None
) -> tuple[Points, Run]:
    """Newton on the points, from the collapsed start or from the solution on coarser cells."""
    lam = problem.lam

    def newton(y, lam, p, weights, threshold, *start):
        small = Problem(
            y, lam, p, PointsOperator(y.shape[1:], problem.op.sigma, weights)
        )
        start = start[0] if start else collapsed_start(small)
        return run(
            Newton(linear_tol=LINEAR_TOL),
            small,
            start,
            threshold,
            min(max_steps, MOST_STEPS),
        )

    start = []
    if coarser is not None:
        y = quadrature.points
        guess = y - lam * coarser.cells.locate(y).interpolate(*coarser.bias())
        start = [jnp.where(problem.unique[:, None] & jnp.isfinite(guess), guess, y)]
    radius = -cells.nodes[:, :1]
    # The tolerance leaves nearly equal neurons room for any slope, which the adjoint needs, so it is at most a share of their range.
    threshold = jnp.minimum(
        allowed(problem, tol, Span(jnp.zeros_like(radius), radius)),
        5e-4 * (cells.step * cells.count)[:, 0],
    )
    found = on_points(
        newton, quadrature.points, lam, problem.p, quadrature.weights, threshold, *start
    )
    return _points_of(problem, cells, quadrature, found.z), found


def _points_of(problem: Problem, cells: Cells, quadrature: Quadrature, z) -> Points:
    """What follows from z at the points."""
    lam, p = problem.lam, problem.p
    t = quadrature.at_nodes(z)
    g, g1, g2 = _sums(problem, z, t, quadrature.weights, (0, 1, 2))
    g = bias_of(problem, cells.nodes - t, g)
    g1, g2 = -p * g1, p * p * g2
    return Points(
        cells, quadrature, z, g, g1, g2, jnp.maximum(1 + lam * g1, FLAT), lam * g2
    )


def bias_of(problem: Problem, shift, bias):
    """B from lam B = y - z, the shift: at large lam z = y - lam B then gives z back, where B(z) would add lam times its error."""
    lam = problem.lam
    return jnp.where(
        jnp.abs(lam) * problem.p > 0.1, shift / jnp.where(lam == 0, 1, lam), bias
    )


def _error(problem: Problem, points: Points) -> Float[Array, "G"]:
    """The estimated residual of the neurons: what the quadrature, the interpolation and rounding leave out.

    The quadrature of g(y) = sigma(p (T(y) - t)) errs by its defect times g'''' / 24, of which the leading term is
    taken, twice, with the mean slope of T in every cell; the interpolation is compared with the solution at the inner points.
    """
    lam, p, quadrature, y1 = problem.lam, problem.p, points.quadrature, points.y1
    steep = p * jnp.diff(points.at_nodes) / points.cells.step
    # At all points, of which the inner ones count: XLA shares the kernel with the sums of `_points_of`.
    (fourth,) = _kernels(problem, points.z, points.at_nodes, (4,))
    defect = jnp.pad(
        quadrature.defect * steep**4, ((0, 0), (points.cells.count + 1, 1))
    )
    quadrature_error = jnp.einsum("gtl,gl->gt", jnp.abs(fourth), defect).max(-1) / 12
    cell = jnp.broadcast_to(jnp.arange(points.cells.count), points.inner.shape)
    place = Place(cell, quadrature.inner, points.cells)
    predicted = quadrature.inside(quadrature.points) - lam * place.interpolate(
        *points.bias()
    )
    gap = jnp.abs(predicted - points.inner) * jnp.maximum(y1[:, 1:], y1[:, :-1])
    interpolation_error = jnp.where(quadrature.occupied, gap, 0).max(-1)
    rounding = _rounding(problem, jnp.abs(points.cells.nodes).max(-1))
    return jnp.abs(lam[:, 0]) * quadrature_error + interpolation_error + rounding


def _rounding(problem: Problem, radius: Float[Array, "G"]) -> Float[Array, "G"]:
    """What rounding makes of a residual, for neurons within the radius."""
    lam, p = problem.lam[:, 0], problem.p[:, 0]
    return 8 * jnp.finfo(p.dtype).eps * ((1 + jnp.abs(lam) * p) * radius)


def _resolved(problem: Problem, points: Points) -> Bool[Array, "G"]:
    """Whether the cells are fine enough for derivatives; past the bound, where T jumps, none is, and that counts as enough.

    Where lam is small beside the tolerance any z will do, but not any derivative: that errs by some 0.0015 |lam| p times the
    square of a cell's extent in widths 1 / p of the kernel, once there are more than WIDTHS.
    """
    lam, p = problem.lam, problem.p
    widths = jnp.where(
        points.quadrature.occupied, p * jnp.diff(points.at_nodes), 0
    ).max(-1)
    return (
        (widths < WIDTHS)
        | ((jnp.abs(lam) * p)[:, 0] * widths**2 < 30)
        | ~problem.unique
    )


def reduced_adjoint(
    problem: Problem,
    span: Span,
    found: Found,
    points: Points,
    on_points,
    v,
    options: Implicit,
):
    """u at the neurons, through the points, and the groups in which the system of the points was solved."""
    lam, p = problem.lam, problem.p
    z, sigma, weight = points.z, problem.op.sigma, points.quadrature.weights
    place = _neurons(problem, span, points.cells)
    # b is the sum of charges and dipoles at the nodes; the kernel is even, its derivative odd.
    charge, dipole = place.spread(found.slope * v / v.shape[1])
    dipole = p * dipole / points.y1
    kernels = _kernels(problem, z, points.at_nodes, (1, 2, 3, 4))
    at_points = lambda kernel, f: jnp.einsum("gtl,gt->gl", kernel, f)
    b = p * (at_points(kernels[0], charge) - at_points(kernels[1], dipole))
    size = jnp.abs(b).max(-1)

    def conjugate(z, lam, p, weights, b, size):
        matrix, inverse_diagonal = Problem(
            z, lam, p, PointsOperator(z.shape[1:], sigma, weights)
        ).hessian(z)
        return conjugate_gradient(
            matrix,
            b,
            inverse_diagonal,
            tol=(1e-3 if options.tol is None else options.tol) * size,
            max_steps=options.max_steps,
            active=size < jnp.inf,
            weight=weights,  # finite: NaN is not less
        )

    inner = on_points(conjugate, z, lam, p, weight, b, size)
    rest = ((0, 0), (0, z.shape[1] - charge.shape[1]))
    charge, dipole = (
        jnp.pad(charge, rest) - lam * weight * inner.x,
        jnp.pad(dipole, rest),
    )
    at_nodes = lambda k: (
        jnp.einsum("gtl,gl->gt", kernels[k], charge)
        + jnp.einsum("gtl,gl->gt", kernels[k + 1], dipole)
    )
    h = points.in_y(p * at_nodes(0), -p * p * at_nodes(1), p**3 * at_nodes(2))
    u = found.slope * (v - lam * place.interpolate(*h))
    return u, inner.ok | ~jnp.isfinite(
        size
    )  # a v that is not finite makes u so, which the pairwise solve cannot mend


def bias_by_p(problem: Problem, span: Span, points: Points) -> Float[Array, "G n"]:
    """dB_i / dp = 1/n sum_k (z_k - z_i) sigma'(p (z_k - z_i)) at the neurons."""
    sigma, p = problem.op.sigma, problem.p
    moment = Sigma(lambda x: x * sigma.derivative(x), sigma.primitive)
    alike = Problem(problem.y, problem.lam, p, UniformOperator((), moment))
    f, f1, f2 = _sums(
        alike, points.z, points.at_nodes, points.quadrature.weights, (0, 1, 2)
    )
    return (
        _neurons(problem, span, points.cells).interpolate(
            *points.in_y(f, -p * f1, p * p * f2)
        )
        / p
    )


def _sums(problem: Problem, z, t, v, orders) -> list[Array]:
    """sum_l v_l sigma^(k)(p (z_l - t_j)) for each order k, [G, targets]."""
    return [
        jnp.einsum("gtl,gl->gt", kernel, v)
        for kernel in _kernels(problem, z, t, orders)
    ]


def _kernels(problem: Problem, z, t, orders) -> list[Array]:
    """sigma^(k)(p (z_l - t_j)) for each order k, [G, targets, sources]."""
    x = problem.p[:, :, None] * (z[:, None, :] - t[:, :, None])
    return [problem.op.sigma.differentiated(k)(x) for k in orders]
