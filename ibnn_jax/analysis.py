"""The paper's theory as functions: how an implicit layer stretches its input, and how curved a loss is."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ibnn_jax.couplings import Coupling
from ibnn_jax.problem import bind
from ibnn_jax.solve import solve_adjoint


def gain_spectrum(z, lam, p, coupling: Coupling) -> Float[Array, "*groups n"]:
    """Eigenvalues, ascending, of K_inf = (I + lam DB(z))^-1, the Jacobian dz/dy at the solution z (paper Eqs. 28, 32).

    K_inf is symmetric, so its largest absolute eigenvalue is its spectral norm: 1 for lam <= 0 (the layer never
    stretches), more than 1 for lam > 0. Builds n x n matrices: for groups of up to a few thousand neurons.

    Raises:
        ValueError: as `ibnn_jax.solve`.
    """
    problem, layout = bind(z, lam, p, coupling)
    z, p, op = problem.y, problem.p, problem.op
    identity = jnp.eye(z.shape[1], dtype=z.dtype)
    # w is what a sum of ones over the pairs sees of each unit vector; the same for every group.
    ones = lambda t, _: jnp.ones_like(t)
    w = jax.lax.map(
        lambda e: op.pair_sum(ones, jnp.zeros_like(z[:1]), p[:1], e[None])[0], identity
    )
    k = w[None] * op.sigma.derivative(
        p[:, :, None] * (z[:, None, :] - z[:, :, None]), p[:, :, None]
    )
    hessian = identity + problem.lam[:, :, None] * (
        k - k.sum(-1)[:, :, None] * identity
    )
    return layout.per_group(jnp.sort(1 / jnp.linalg.eigvalsh(hessian), axis=-1))


def gain(z, direction, lam, p, coupling: Coupling) -> Float[Array, "*groups"]:
    """|K_inf d| / |d| per group for a direction d of change in y at the solution z: the left side of Eq. (33) over that of SM.

    NaN where the linear system could not be solved. At most 1 for lam <= 0 (Eq. 34, Proposition 6).

    Raises:
        ValueError: as `ibnn_jax.solve_adjoint`.
    """
    stretched = solve_adjoint(z, direction, lam, p, coupling).value
    axes = coupling.coupled_axes(jnp.ndim(z))
    return jnp.sqrt((stretched**2).sum(axes) / (direction**2).sum(axes))


def input_curvature(
    loss: Callable[[Array], Float[Array, "N"]],
    x: Float[Array, "N ..."],
    key: Array,
    *,
    h: float = 1e-2,
    probes: int = 10,
) -> Float[Array, "N"]:
    """|grad L(x + h g) - grad L(x)|^2 averaged over Rademacher vectors g (paper Eq. 61), one value per input.

    Args:
        loss: inputs -> one loss per input, each depending on its own input only.
        h: size of the step, in units of x. probes: number of vectors g.

    Raises:
        ValueError: h not positive or probes less than 1.
    """
    if h <= 0 or probes < 1:
        raise ValueError(
            f"h must be positive and probes at least 1; got {h} and {probes}"
        )
    gradient = jax.grad(lambda x: loss(x).sum())
    here = gradient(x)

    def probe(key):
        g = jax.random.rademacher(key, x.shape, x.dtype)
        return ((gradient(x + h * g) - here) ** 2).reshape(len(x), -1).sum(1)

    return jax.lax.map(probe, jax.random.split(key, probes)).mean(0)


def predicted_curvature_ratio(lam, p):
    """(1 + lam p)^2, the curvature of IBNN's loss over SM's for small lam and inputs in sigma's linear range (Eq. 62)."""
    return (1 + lam * p) ** 2
