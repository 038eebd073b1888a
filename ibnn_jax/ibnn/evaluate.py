"""The equation evaluated, not solved: energy, inverse, one explicit step."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ibnn_jax.core.iterate import Run, package
from ibnn_jax.ibnn.couplings import Coupling
from ibnn_jax.ibnn.layout import bind, check_same_shape
from ibnn_jax.solvers.newton import Newton


def energy(z, y, lam, p, coupling: Coupling) -> Float[Array, "*groups"]:
    """E(z; y) = 1/2 |z - y|^2 - lam/2 sum_ik w_ik S_p(z_k - z_i) per group (Eq. 5).

    S_p is the primitive of t -> sigma(p t). The solution is a critical point of E.

    Args:
        z, y: of one shape.
        lam, p, coupling: as in `solve`.

    Raises:
        ValueError: as `solve`; shapes of z and y differ.
    """
    check_same_shape("z", z, "y", y)
    problem, layout = bind(y, lam, p, coupling)
    z = layout.to_groups(jnp.asarray(z, problem.y.dtype))
    return layout.per_group(problem.energy(z))


def inverse(z, lam, p, coupling: Coupling) -> Float[Array, "..."]:
    """y = z + lam B(z), the input whose solution is z: exact, in one sum (Eq. 25).

    Differentiable by JAX in z, lam, p and a Dense w. Where lam is past the uniqueness
    bound, z is one of the solutions for this y, and not always the one that `solve`
    returns.

    Args:
        z, lam, p, coupling: as in `solve`.

    Raises:
        ValueError: as `solve`.
    """
    problem, layout = bind(z, lam, p, coupling)
    z_groups = problem.y
    y = z_groups + problem.lam * problem.op.bias(z_groups, problem.p)
    return layout.from_groups(y).astype(jnp.asarray(z).dtype)


def one_step(y, lam, p, coupling: Coupling, *, has_stats: bool = False):
    """z = y - lam B(y), one explicit step: the "lite" layer of the authors' code.

    Args:
        y, lam, p, coupling: as in `solve`.
        has_stats: return (z, Stats), with the residual that the step leaves.

    Raises:
        ValueError: as `solve`.
    """
    problem, layout = bind(y, lam, p, coupling)
    z = problem.y + problem.residual(problem.y)
    dtype = jnp.asarray(y).dtype
    if not has_stats:
        return layout.from_groups(z).astype(dtype)
    residual = jnp.abs(jax.lax.stop_gradient(problem.residual(z))).max(-1)
    ran = Run(z, residual, jnp.ones_like(residual, dtype=jnp.int32), None)
    threshold = problem.tolerance(Newton().tolerance_for(z.dtype))
    valid = jnp.ones_like(residual, dtype=bool)
    solution = layout.restore(package(problem, valid, ran, threshold), dtype)
    return solution.value, solution.stats
