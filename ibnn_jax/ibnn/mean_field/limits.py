"""Which residuals are accepted, and what rounding makes of them."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ibnn_jax.ibnn.equation import IBNNProblem, Span

# Largest error of p z: a larger one changes sigma', and with it the gradient
LARGEST_ERROR = 0.01
# The largest share of the steepest slope of z by which another slope may be wrong
SLOPE_ERROR = 0.01


def threshold_of(problem: IBNNProblem, tol: float, span: Span) -> Float[Array, "G"]:
    """The residual that is accepted: `problem.tolerance`, and at most 50 tol / p.

    sigma(p .) turns within 1 / p, so that a larger error, which is little beside wide
    y, would leave nothing of the gradient. Rounding may forbid the second.
    """
    wanted = threshold_unrounded(problem, tol, span)
    wanted = jnp.maximum(wanted, _rounded(problem, span))
    return jnp.minimum(problem.tolerance(tol, span), wanted)


def threshold_unrounded(
    problem: IBNNProblem, tol: float, span: Span
) -> Float[Array, "G"]:
    """`threshold_of` as it would be if numbers did not round."""
    return jnp.minimum(problem.tolerance(tol, span), 50 * tol / problem.p[:, 0])


def limit_of(
    problem: IBNNProblem, slope: Float[Array, "G n"], span: Span
) -> Float[Array, "G"]:
    """The residual that the gradient bears, for z of this slope in y.

    Rounding may forbid it; past the uniqueness bound nothing is asked.
    """
    limit = bearable(slope.max(-1)) / problem.p[:, 0]
    limit = jnp.maximum(limit, _rounded(problem, span))
    return jnp.where(problem.unique, limit, jnp.inf)


def bearable(slope: Float[Array, "*G"]) -> Float[Array, "*G"]:
    """The residual of x = p z that the gradient bears, where z has this slope in y.

    A residual r moves x by about s r, and with it s by a share of at most s^2 |q r|,
    where q = lam p. A slope that is NaN, of an attempt that failed, counts as 1.
    """
    return LARGEST_ERROR / jnp.fmax(slope, 1) ** 2


def _rounded(problem: IBNNProblem, span: Span) -> Float[Array, "G"]:
    """A residual of z that may be rounding alone."""
    steep = (1 + jnp.abs(problem.lam) * problem.p)[:, 0]
    return 4 * rounding(steep, span.radius[:, 0])


def rounding(steep: Float[Array, "G"], radius: Float[Array, "G"]) -> Float[Array, "G"]:
    """What rounding makes of a residual of slope `steep`, for z within the radius."""
    return 8 * float(jnp.finfo(radius.dtype).eps) * steep * radius


def half_ulp(z: Float[Array, "G n"]) -> Float[Array, "G n"]:
    """By how much a rounded z may differ from the number it stands for."""
    return 0.5 * float(jnp.finfo(z.dtype).eps) * jnp.abs(z)
