"""By how much the neurons' answer, read off the points, may be wrong."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ibnn_jax.ibnn.equation import IBNNProblem
from ibnn_jax.ibnn.mean_field import point_system
from ibnn_jax.ibnn.mean_field.limits import rounding
from ibnn_jax.ibnn.mean_field.points import Points, Prepared
from ibnn_jax.ibnn.mean_field.quadrature import Place

# 1 / p that a cell may span in z for B and its derivatives to be resolved; on trained
# activations attempts of a small enough residual have 3 at most
WIDTHS = 4
# The largest |(u (1 - u))^3 (u - 1/2)| over its slope at u = 1/2
UNEVEN = 0.12


class Errors(NamedTuple):
    """Estimates for the neurons, beside what the points were solved to."""

    residual: Float[Array, "G"]  # what quadrature, interpolation and rounding leave
    rounding: Float[Array, "G"]  # the share of rounding z in it
    slope: Float[Array, "G"]  # of T, as a share of the steepest


def errors_of(
    prepared: Prepared, points: Points, solved_to: Float[Array, "G"]
) -> Errors:
    """The errors of what is read off the points, whose residual is `solved_to`."""
    problem = prepared.problem
    lipschitz = 1 + jnp.abs(1 - points.y1).max(-1)  # 1 + |lam| d
    rounded = rounding(lipschitz, jnp.abs(points.cells.nodes).max(-1))
    missed, steepest = _slope_missed(prepared, points)
    of_quadrature = jnp.abs(problem.lam[:, 0]) * points.missed
    noise = solved_to + rounded
    of_interpolation = _interpolation_error(problem, points, noise, missed)
    residual = of_quadrature + of_interpolation + rounded
    return Errors(residual, rounded, missed.max(-1) / steepest)


def _interpolation_error(
    problem: IBNNProblem,
    points: Points,
    noise: Float[Array, "G"],
    slope_missed: Float[Array, "G m"],
) -> Float[Array, "G"]:
    """The residual that interpolation leaves, from its error at the inner points.

    Interpolation errs by (u (1 - u))^3, so by up to eight times as much in the middle
    of a cell where the inner point is off it; an error within the noise says nothing.
    It may also err to both sides of the middle, by (u - 1/2) times that. An inner point
    in the middle, in a crowd, does not see this, but the slope there does.
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


def widths_of(problem: IBNNProblem, points: Points) -> Float[Array, "G"]:
    """The extent in z of the largest occupied cell, in widths 1 / p of the kernel."""
    widths = problem.p * jnp.diff(points.at_nodes)
    return jnp.where(points.quadrature.occupied, widths, 0).max(-1)


def cells_resolve(problem: IBNNProblem, widths: Float[Array, "G"]) -> Bool[Array, "G"]:
    """Whether the cells are fine enough for the adjoint.

    Where lam is small beside the tolerance any z will do, but not any adjoint: that
    errs by some 0.0015 |lam| p widths^2 once there are more than WIDTHS, and 0.6% are
    accepted.
    """
    strength = (jnp.abs(problem.lam) * problem.p)[:, 0]
    return (widths < WIDTHS) | (strength * widths**2 < 4)
