"""A group's points: their equation, its adjoint, and the sums that are read at nodes.

All work on matrices between points is here, in functions of arrays that are led by
groups, which they do not mix. So `pallas.per_group` can make a GPU kernel of each; the
kernel has its own `Arithmetic`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ibnn_jax.core.batching import product, product_from_left
from ibnn_jax.core.iterate import Run, run
from ibnn_jax.core.linear_solve import linear_solve
from ibnn_jax.ibnn.equation import IBNNProblem
from ibnn_jax.ibnn.pairwise import PointsOperator
from ibnn_jax.ibnn.sigmas import Sigma
from ibnn_jax.solvers.newton import Newton

# Of Newton's inner solves: the starts are good, and the tolerance is not tight
LINEAR_TOL = 0.05
# Of Newton on the points: past it weightless ones go in circles, or rounding holds all
# of them up
MOST_STEPS = 30


class Arithmetic(NamedTuple):
    """How the functions here compute."""

    sigma: Sigma
    product: Callable[[Array, Array], Array] = product
    product_from_left: Callable[[Array, Array], Array] = product_from_left


def solve(
    how: Arithmetic,
    y: Float[Array, "G k"],
    lam: Float[Array, "G 1"],
    p: Float[Array, "G 1"],
    weights: Float[Array, "G k"],
    threshold: Float[Array, "G"],
    start: Float[Array, "G k"] | None = None,
    *,
    max_steps: int,
) -> Run:
    """Newton on points of these weights, from their own start where none is given."""
    problem = _problem(how, y, lam, p, weights)
    start = problem.start() if start is None else start
    newton = Newton(linear_tol=LINEAR_TOL)
    return run(newton, problem, start, threshold, min(max_steps, MOST_STEPS))


def read(
    how: Arithmetic,
    z: Float[Array, "G k"],
    t: Float[Array, "G m+1"],
    p: Float[Array, "G 1"],
    weights: Float[Array, "G k"],
    quartic: Float[Array, "G k"],
) -> tuple[Array, Array, Array, Array]:
    """G(t) = sum_l weights_l sigma(p (z_l - t)) and two derivatives in t; and
    sum_l quartic_l |sigma''''(p (z_l - t))|, [G, m+1].
    """
    at = _kernels(how, z, t, p, (0, 1, 2, 4))
    g, g1, g2 = (how.product_from_left(weights, kernel) for kernel in at[:3])
    quartic = how.product_from_left(quartic, jnp.abs(at[3]))
    return g, -p * g1, p * p * g2, quartic


def read_slope(
    how: Arithmetic,
    z: Float[Array, "G k"],
    t: Float[Array, "G m+1"],
    p: Float[Array, "G 1"],
    weights: Float[Array, "G k"],
) -> Float[Array, "G m+1"]:
    """G'(t), see `read`."""
    (kernel,) = _kernels(how, z, t, p, (1,))
    return -p * how.product_from_left(weights, kernel)


def respond(
    how: Arithmetic,
    z: Float[Array, "G k"],
    t: Float[Array, "G m+1"],
    lam: Float[Array, "G 1"],
    p: Float[Array, "G 1"],
    weights: Float[Array, "G k"],
    charge: Float[Array, "G m+1"],
    dipole: Float[Array, "G m+1"],
    *,
    tol: float,
    max_steps: int,
) -> tuple[Float[Array, "G k"], Bool[Array, "G"], Float[Array, "G"]]:
    """(x, whether it was found, max|b|) with (I + lam DB) x = b at the points.

    b is what charges and dipoles at t make of K(t) = p sigma'(p t), which is even.
    """
    first, second = _kernels(how, z, t, p, (1, 2))
    b = p * (how.product(first, charge) - how.product(second, dipole))
    size = jnp.abs(b).max(-1)
    finite = size < jnp.inf  # NaN is not less
    h = _problem(how, z, lam, p, weights).linearise(z)
    solution = linear_solve(h, b, tol=tol * size, max_steps=max_steps, active=finite)
    return solution.x, solution.ok, size


def read_response(
    how: Arithmetic,
    z: Float[Array, "G k"],
    t: Float[Array, "G m+1"],
    p: Float[Array, "G 1"],
    charge: Float[Array, "G k"],
    dipole: Float[Array, "G k"],
) -> tuple[Array, Array, Array]:
    """What charges and dipoles at the points make of K, and two derivatives in t."""
    kernels = _kernels(how, z, t, p, (1, 2, 3, 4))
    charges = [how.product_from_left(charge, kernel) for kernel in kernels[:3]]
    dipoles = [how.product_from_left(dipole, kernel) for kernel in kernels[1:]]
    h, h1, h2 = (a + b for a, b in zip(charges, dipoles))
    return p * h, -p * p * h1, p * p * p * h2


def read_by_p(
    how: Arithmetic,
    z: Float[Array, "G k"],
    t: Float[Array, "G m+1"],
    p: Float[Array, "G 1"],
    weights: Float[Array, "G k"],
) -> tuple[Array, Array, Array]:
    """dG(t)/dp = sum_l weights_l (z_l - t) sigma'(p (z_l - t)), and its first two
    derivatives in t.
    """
    slope = how.sigma.derivative
    moment = Sigma(lambda x: x * slope(x), how.sigma.primitive)
    # By target and source, unlike `_kernels`: a narrow group's gradients together then
    # take a twentieth less on CPUs.
    x = p[:, :, None] * (z[:, None, :] - t[:, :, None])
    kernels = [moment.differentiated(k)(x) for k in (0, 1, 2)]
    f, f1, f2 = (how.product(kernel, weights) for kernel in kernels)
    return f / p, -f1, p * f2


def _problem(how: Arithmetic, y, lam, p, weights) -> IBNNProblem:
    op = PointsOperator(y.shape[1:], how.sigma, weights, how.product_from_left)
    return IBNNProblem(y, lam, p, op)


def _kernels(how: Arithmetic, z, t, p, orders) -> list[Float[Array, "G k m+1"]]:
    """sigma^(k)(p (z_l - t_j)) for each order k."""
    x = p[:, :, None] * (z[:, :, None] - t[:, None, :])
    return [how.sigma.differentiated(k)(x) for k in orders]
