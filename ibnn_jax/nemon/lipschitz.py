"""How far y = C z, z = phi(A z + B x + b), can move with x in the infinity norm."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ibnn_jax.core.batching import full_precision
from ibnn_jax.nemon.weights import check_gamma, matrix_measure, metzler


@full_precision
def lipschitz(
    A: Float[Array, "n n"],
    B: Float[Array, "n k"],
    C: Float[Array, "q n"],
    eta: Float[Array, "n"],
    gamma: Float[Array, ""] | float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(the paper's bound, the componentwise bound) on |dy|_inf / |dx|_inf.

    The first is |B| |C| / (1 - max(gamma, 0)) in the weighted norms. The second needs
    no eta: with M = A but |a_ij| off the diagonal, I - M is an M-matrix and

        |dy| <= |C| (I - M)^-1 |B| |dx|    componentwise

    Both are the largest over the outputs, for every nondecreasing phi of slope at most
    1. Where mu(A) exceeds gamma, or gamma is not below 1, there is no bound, and both
    are infinite.

    Raises:
        ValueError: the shapes do not fit together.
    """
    _check(B, C, eta)
    if A.shape != (len(eta), len(eta)):
        raise ValueError(f"A must be {(len(eta), len(eta))}; got {A.shape}")
    slack = 100 * jnp.finfo(A.dtype).eps * (1 + jnp.abs(A).max())
    valid = (matrix_measure(A, eta) <= gamma + slack) & (gamma < 1)
    paper = _norm_in(B, eta) * _norm_out(C, eta) / (1 - jnp.maximum(gamma, 0))
    identity = jnp.eye(len(A), dtype=A.dtype)
    reach = jnp.linalg.solve(identity - metzler(A), jnp.abs(B).sum(1))
    componentwise = (jnp.abs(C) @ reach).max()
    paper, componentwise = (
        jnp.where(valid, bound, jnp.inf) for bound in (paper, componentwise)
    )
    return paper, componentwise


@full_precision
def regulariser(
    B: Float[Array, "n k"],
    C: Float[Array, "q n"],
    eta: Float[Array, "n"],
    gamma: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """(|B|^2 + |C|^2) / (2 (1 - max(gamma, 0))) in the weighted norms.

    At least the paper's Lipschitz bound, by the inequality of the means. It is
    differentiable, to be added to a loss with a weight.

    Raises:
        ValueError: the shapes do not fit together; gamma is not below 1.
    """
    _check(B, C, eta)
    check_gamma(gamma)
    squares = _norm_in(B, eta) ** 2 + _norm_out(C, eta) ** 2
    return squares / (2 * (1 - jnp.maximum(gamma, 0)))


def _norm_in(B, eta):
    """|B| from the infinity norm to the weighted one."""
    return (jnp.abs(B).sum(1) / eta).max()


def _norm_out(C, eta):
    """|C| from the weighted norm to the infinity norm."""
    return (jnp.abs(C) @ eta).max()


def _check(B, C, eta):
    n = jnp.shape(eta)
    fits = jnp.ndim(B) == jnp.ndim(C) == 2 and B.shape[:1] == n == C.shape[1:]
    if not fits:
        raise ValueError(
            "B must be [n, inputs], C [outputs, n] and eta [n]; "
            f"got {jnp.shape(B)}, {jnp.shape(C)} and {n}"
        )
