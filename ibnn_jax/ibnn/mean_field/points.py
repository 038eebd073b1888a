"""The points that stand for a group, and what is known once they are solved."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ibnn_jax.ibnn.equation import IBNNProblem, Span
from ibnn_jax.ibnn.mean_field import point_system
from ibnn_jax.ibnn.mean_field.quadrature import Cells, Place, Quadrature

# Least slope Y' that is believed past the uniqueness bound; below it is 1 - lam p
FLAT = 1e-2


class Prepared(NamedTuple):
    """A problem ready to be reduced, and how its points and cells are computed."""

    problem: IBNNProblem  # sanitised
    span: Span  # of y
    on_points: Callable  # (f, *arrays) -> f(how, *arrays), for f of `point_system`
    moments: Callable  # (place, v) -> place.moments(v)


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


def stand_ins(prepared: Prepared, count: int) -> tuple[Place, Quadrature]:
    """The neurons in `count` cells, and the points that stand for them."""
    place = locate(prepared, Cells.spanning(prepared.span.radius, count))
    # Whole numbers add up without rounding: a group may be all but equal.
    moments = [m / prepared.problem.y.shape[1] for m in prepared.moments(place, 1.0)]
    return place, place.quadrature(moments)


def locate(prepared: Prepared, cells: Cells) -> Place:
    """The neurons in the cells, which lie around 0.

    So nothing as large as the shared part of y is subtracted from its like.
    """
    return cells.locate(prepared.problem.y - prepared.span.centre)


def points_of(prepared: Prepared, cells: Cells, quadrature: Quadrature, z) -> Points:
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


def rebuild_points(prepared: Prepared, z: Float[Array, "G 2m+2"]) -> Points:
    """The Points of which only z was kept."""
    count = z.shape[1] // 2 - 1
    place, quadrature = stand_ins(prepared, count)
    return points_of(prepared, place.cells, quadrature, z)


def bias_of(problem: IBNNProblem, shift, bias):
    """B from lam B = y - z, the shift, where lam is large.

    z = y - lam B then gives z back, where B(z) would add lam times its error.
    """
    lam = problem.lam
    return jnp.where(strong(problem), shift / jnp.where(lam == 0, 1, lam), bias)


def strong(problem: IBNNProblem) -> Bool[Array, "G 1"]:
    """Where lam multiplies errors of B: |lam| p > 1."""
    return jnp.abs(problem.lam) * problem.p > 1
