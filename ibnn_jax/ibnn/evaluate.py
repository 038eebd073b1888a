"""The equation evaluated, not solved: energy, inverse, one explicit step."""

from typing import Literal, overload

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ibnn_jax.core.iterate import Run, package
from ibnn_jax.core.options import real_array
from ibnn_jax.core.solution import Stats
from ibnn_jax.ibnn.couplings import Coupling
from ibnn_jax.ibnn.layout import bind, check_same_shape
from ibnn_jax.ibnn.sharding import over_mesh
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

    def local(y, lam, p, coupling, z):
        problem, layout = bind(y, lam, p, coupling)
        z = layout.to_groups(z.astype(problem.y.dtype))
        return layout.per_group(problem.energy(z))

    y, z = real_array("y", y), real_array("z", z)
    return over_mesh(local, y, lam, p, coupling, z, returns=lambda _, groups: groups)


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

    def local(z, lam, p, coupling, _):
        problem, layout = bind(z, lam, p, coupling)
        y = problem.y + problem.lam * problem.op.bias(problem.y, problem.p)
        return layout.from_groups(y).astype(z.dtype)

    z = real_array("z", z)
    return over_mesh(local, z, lam, p, coupling, returns=lambda like_z, _: like_z)


@overload
def one_step(
    y, lam, p, coupling: Coupling, *, has_stats: Literal[True]
) -> tuple[Array, Stats]: ...
@overload
def one_step(
    y, lam, p, coupling: Coupling, *, has_stats: Literal[False] = False
) -> Array: ...
@overload
def one_step(
    y, lam, p, coupling: Coupling, *, has_stats: bool
) -> Array | tuple[Array, Stats]: ...
def one_step(y, lam, p, coupling: Coupling, *, has_stats: bool = False):
    """z = y - lam B(y), one explicit step: the "lite" layer of the authors' code.

    NaN in groups that hold NaN or infinity, or p <= 0.

    Args:
        y, lam, p, coupling: as in `solve`.
        has_stats: return (z, Stats), with the residual that the step leaves.

    Raises:
        ValueError: as `solve`.
    """

    def local(y, lam, p, coupling, _):
        problem, layout = bind(y, lam, p, coupling)
        problem, valid = problem.sanitised()
        z = problem.y + problem.residual(problem.y)
        left = problem.residual(z) if has_stats else jnp.zeros_like(z)
        residual = jnp.abs(jax.lax.stop_gradient(left)).max(-1)
        ran = Run(z, residual, jnp.ones_like(residual, dtype=jnp.int32), None)
        threshold = problem.tolerance(Newton().tolerance_for(z.dtype))
        return layout.restore(package(problem, valid, ran, threshold), y.dtype)

    solution = over_mesh(local, real_array("y", y), lam, p, coupling)
    return (solution.value, solution.stats) if has_stats else solution.value
