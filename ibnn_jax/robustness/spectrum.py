"""How an implicit layer stretches a change of its input."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ibnn_jax.core.options import real_array
from ibnn_jax.ibnn.couplings import Coupling, check_coupling
from ibnn_jax.ibnn.layout import bind
from ibnn_jax.ibnn.sharding import over_mesh
from ibnn_jax.ibnn.solve import solve_adjoint


def gain_spectrum(
    z: Float[Array, "..."], lam: float | Array, p: float | Array, coupling: Coupling
) -> Float[Array, "*groups n"]:
    """The eigenvalues of the layer's Jacobian dz/dy at the solution z, ascending.

        dz/dy = K_inf = (I + lam DB(z))^-1        (paper, Eqs. 28 and 32)

    K_inf is symmetric, so its largest absolute eigenvalue is its spectral norm: 1 for
    lam <= 0, where the layer never stretches, and more than 1 for lam > 0.

    Args:
        z: the solution, with its own axes.
        lam, p, coupling: those that z solves; as in `ibnn_jax.solve`.

    Returns:
        n eigenvalues for each coupled group of n neurons. An n x n matrix is built for
        each group: meant for groups of up to a few thousand neurons.

    Raises:
        ValueError: as `ibnn_jax.solve`.
    """

    def local(z, lam, p, coupling, _):
        problem, layout = bind(z, lam, p, coupling)
        matvec = problem.linearise(problem.y).matvec  # at z, which is the y of `bind`
        # From z, so that it varies over a mesh as z does.
        y = problem.y
        identity = jnp.eye(y.shape[1], dtype=y.dtype)[:, None] + 0 * y[None]
        hessian = jnp.moveaxis(jax.lax.map(matvec, identity), 0, -1)
        return layout.per_group(jnp.sort(1 / jnp.linalg.eigvalsh(hessian), axis=-1))

    z = real_array("z", z)
    return over_mesh(local, z, lam, p, coupling, returns=lambda _, groups: groups)


def gain(
    z: Float[Array, "..."],
    direction: Float[Array, "..."],
    lam: float | Array,
    p: float | Array,
    coupling: Coupling,
) -> Float[Array, "*groups"]:
    """How much the layer stretches one direction of change of y: |K_inf d| / |d|.

    It is the left side of the paper's Eq. (33) over that of a standard layer, and at
    most 1 for lam <= 0 (Eq. 34, Proposition 6).

    Args:
        z: the solution, with its own axes.
        direction: d, a change of y, of the shape of z.
        lam, p, coupling: those that z solves; as in `ibnn_jax.solve`.

    Returns:
        One number for each coupled group; NaN where the linear system is not solved.

    Raises:
        ValueError: as `ibnn_jax.solve_adjoint`.
    """
    z, direction = real_array("z", z), real_array("direction", direction)
    check_coupling(coupling)
    axes = coupling.coupled_axes(z.ndim)
    # Its length does not matter, and its square might overflow.
    largest = jnp.abs(direction).max(axes, keepdims=True)
    direction = direction / jnp.where(largest > 0, largest, 1)
    stretched = solve_adjoint(z, direction, lam, p, coupling).value
    wide = jnp.promote_types(direction.dtype, jnp.float32)
    squares = [(d.astype(wide) ** 2).sum(axes) for d in (stretched, direction)]
    return jnp.sqrt(squares[0] / squares[1])
