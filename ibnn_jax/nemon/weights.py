"""Matrices that are well-posed by construction: NEMON's, and those of its rivals.

The infinity norm with weights eta > 0 is |z|_eta = max_i |z_i| / eta_i. Its matrix
measure is

    mu(A) = max_i ( a_ii + sum_{j != i} |a_ij| eta_j / eta_i )

If mu(A) <= gamma < 1, then z = phi(A z + u) has exactly one solution for every u and
every nondecreasing phi of slope at most 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ibnn_jax.core.batching import full_precision
from ibnn_jax.core.options import is_known, real_array


def contractive(
    T: Float[Array, "n n"], log_eta: Float[Array, "n"], gamma: Float[Array, ""] | float
) -> Float[Array, "n n"]:
    """A matrix with mu(A) <= gamma in the norm weighted by eta = exp(log_eta):

        A = diag(eta) T diag(1/eta) - diag(sum_j |T_ij|) + gamma I

    Every such matrix is reached: T_ij = a_ij eta_j / eta_i off the diagonal, and
    T_ii = (a_ii + sum_{j != i} |T_ij| - gamma) / 2. Differentiable.

    Args:
        T: a square matrix, free.
        log_eta: logarithms of the weights, free.
        gamma: the bound on mu(A); below 1 the layer is well-posed.

    Raises:
        ValueError: T is not square, log_eta does not fit it, or gamma is known and not
            below 1.
    """
    T, log_eta = jnp.asarray(T), jnp.asarray(log_eta)
    if T.ndim != 2 or T.shape[0] != T.shape[1] or log_eta.shape != T.shape[:1]:
        raise ValueError(
            "contractive needs T [n, n] and log_eta [n]; "
            f"got {T.shape} and {log_eta.shape}"
        )
    check_gamma(gamma)
    ratio = jnp.exp(log_eta[:, None] - log_eta[None, :])
    diagonal = gamma - jnp.abs(T).sum(1)
    return T * ratio + jnp.diag(diagonal)


def contractive_kernel(
    T: Float[Array, "h w c c"],
    log_eta: Float[Array, "c"],
    gamma: Float[Array, ""] | float,
) -> Float[Array, "h w c c"]:
    """The kernel of a convolution of stride 1, zero-padded, with mu(A) <= gamma.

    A row of its matrix A holds all taps that lead to one output channel o, and the
    diagonal entry is the central tap from o to o. With one weight per channel:

        K[.., i, o] = eta_o T[.., i, o] / eta_i
        K[centre, o, o] += gamma - sum_{taps, i} |T[.., i, o]|

    Raises:
        ValueError: the kernel has an even side or unequal channels, log_eta does not
            fit, or gamma is not below 1.
    """
    T, log_eta = jnp.asarray(T), jnp.asarray(log_eta)
    check_kernel(T)
    if log_eta.shape != T.shape[3:]:
        raise ValueError(
            f"log_eta must have one value per channel, [{T.shape[3]}]; "
            f"got {log_eta.shape}"
        )
    check_gamma(gamma)
    ratio = jnp.exp(log_eta[None, :] - log_eta[:, None])
    diagonal = gamma - jnp.abs(T).sum((0, 1, 2))
    centre = (T.shape[0] // 2, T.shape[1] // 2)
    return (T * ratio[None, None]).at[centre].add(jnp.diag(diagonal))


@full_precision
def matrix_measure(A: Float[Array, "n n"], eta: Float[Array, "n"]) -> Float[Array, ""]:
    """mu(A) = max_i ( a_ii + sum_{j != i} |a_ij| eta_j / eta_i ).

    Raises:
        ValueError: A is not square or eta does not fit it.
    """
    A, eta = jnp.asarray(A), jnp.asarray(eta)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or eta.shape != A.shape[:1]:
        raise ValueError(
            f"matrix_measure needs A [n, n] and eta [n]; got {A.shape} and {eta.shape}"
        )
    return (metzler(A) @ eta / eta).max()


def metzler(A: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """A with |a_ij| off the diagonal."""
    return jnp.where(jnp.eye(len(A), dtype=bool), A, jnp.abs(A))


@full_precision
def best_weights(A: Float[Array, "n n"], steps: int = 200) -> Float[Array, "n"]:
    """The eta for which mu(A) is smallest: the Perron vector of `metzler(A)`.

    Found by `steps` power iterations. mu(A) in any positive eta bounds the smallest
    from above, so an inexact eta gives no false certificate.
    """
    M = metzler(jax.lax.stop_gradient(A))
    size = jnp.abs(M).sum(1).max()
    shift = jnp.maximum(-jnp.diag(M).min(), 0) + 1e-3 * size
    smallest = 1e-3 if M.dtype == jnp.float32 else 1e-6

    def body(_, eta):
        eta = M @ eta + shift * eta
        eta = eta / jnp.where(eta.max() > 0, eta.max(), 1)
        return jnp.maximum(eta, smallest)

    return jax.lax.fori_loop(0, steps, body, jnp.ones(len(M), M.dtype))


def norm_bounded(T: Float[Array, "n n"], bound: float = 0.95) -> Float[Array, "n n"]:
    """A with |A|_inf <= bound: longer rows of T are scaled down to it.

    The rival that implicit deep learning uses (El Ghaoui et al., 2021). Contained in
    mu(A) < 1.
    """
    rows = jnp.abs(T).sum(1, keepdims=True)
    return T * (bound / jnp.maximum(rows, bound))


@full_precision
def monotone(
    W: Float[Array, "k n"], S: Float[Array, "n n"], margin: float = 0.05
) -> Float[Array, "n n"]:
    """A = (1 - m) I - W^T W + S - S^T: the monotone operator networks of Winston and
    Kolter (2020).

    I - A is strongly monotone with constant m > 0 in the Euclidean norm. Neither this
    class nor mu(A) < 1 contains the other.
    """
    identity = jnp.eye(S.shape[0], dtype=S.dtype)
    return (1 - margin) * identity - W.T @ W + S - S.T


def check_gamma(gamma) -> None:
    """Refuse a gamma that is known and not below 1."""
    real_array("gamma", gamma)
    if is_known(gamma) and not ((np.asarray(gamma) < 1) & np.isfinite(gamma)).all():
        raise ValueError(
            f"gamma must be below 1 and finite, or z is not unique; got {gamma}"
        )


def check_kernel(kernel: Array) -> None:
    """Refuse what is no kernel [h, w, c, c] with odd h and w."""
    shape = jnp.shape(kernel)
    odd = len(shape) == 4 and shape[0] % 2 == 1 and shape[1] % 2 == 1
    if not odd or shape[2] != shape[3]:
        raise ValueError(
            "a NEMON convolution needs a kernel [h, w, channels, channels] with odd "
            f"h and w; got {shape}"
        )
