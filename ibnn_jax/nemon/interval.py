"""Bounds on z when u is only known to lie between two vectors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from ibnn_jax.core import AbstractAdjoint, AbstractSolver
from ibnn_jax.core.batching import full_precision
from ibnn_jax.core.labels import class_labels, integer_labels
from ibnn_jax.core.options import is_known, real_array
from ibnn_jax.nemon.equation import bind
from ibnn_jax.nemon.matrices import AbstractMatrix, as_matrix
from ibnn_jax.nemon.solve import differentiable


def interval(
    A: Float[Array, "n n"] | AbstractMatrix,
    u_lo: Float[Array, "... n"],
    u_hi: Float[Array, "... n"],
    activation: Callable[[Array], Array] = jax.nn.relu,
    eta: Float[Array, "n"] | None = None,
    *,
    solver: AbstractSolver | str = "auto",
    adjoint: AbstractAdjoint | None = None,
    tol: float | None = None,
    max_steps: int | None = None,
) -> tuple[Float[Array, "... n"], Float[Array, "... n"]]:
    """(z_lo, z_hi) with z_lo <= z <= z_hi for every u_lo <= u <= u_hi; differentiable.

    With P the diagonal and the positive entries of A and N its negative ones off the
    diagonal, the embedded network

        lo = phi(P lo + N hi + u_lo),    hi = phi(P hi + N lo + u_hi)

    is one system of twice the size with the matrix [[P, N], [N, P]], whose mu is that
    of A. So it has one solution where A has, found by the same solvers, and the average
    iteration from z on keeps lo <= z <= hi.

    Rows that miss their tolerance get infinite bounds, for nothing is known of them; so
    do rows where a traced u_lo is above u_hi.

    Args:
        A, activation, eta, solver, adjoint, tol, max_steps: as in `nemon.fixed_point`,
            for the embedded network.
        u_lo, u_hi: the ends, of one shape.

    Raises:
        ValueError: as `nemon.solve`; u_lo and u_hi differ in shape, or u_lo is known to
            be above u_hi.

    Reference: Jafarpour et al., Robust training and verification of implicit neural
        networks (2022).
    """
    u_lo, u_hi = real_array("u_lo", u_lo), real_array("u_hi", u_hi)
    if u_lo.shape != u_hi.shape:
        raise ValueError(
            f"u_lo and u_hi must have one shape; got {u_lo.shape} and {u_hi.shape}"
        )
    crossed = u_lo > u_hi
    if is_known(crossed) and crossed.any():
        raise ValueError("the lower end of an interval must not be above the upper one")
    matrix = as_matrix(A)
    both = None if eta is None else jnp.concatenate([eta, eta])
    u = jnp.concatenate([u_lo, u_hi], -1)
    problem = bind(matrix.embedded(), u, activation, both)
    solution = differentiable(problem, solver, adjoint, tol, max_steps)
    z = solution.value.reshape(u.shape).astype(u_lo.dtype)
    lo, hi = jnp.split(z, 2, -1)
    batch = u.shape[: u.ndim - len(matrix.event)]
    met = solution.stats.converged.reshape(*batch, *[1] * len(matrix.event))
    inner = tuple(range(len(batch), u.ndim))
    met &= ~crossed.any(inner, keepdims=True)
    return jnp.where(met, lo, -jnp.inf), jnp.where(met, hi, jnp.inf)


@full_precision
def margins(
    C: Float[Array, "q n"],
    c: Float[Array, "q"],
    z_lo: Float[Array, "N n"],
    z_hi: Float[Array, "N n"],
    labels: Int[Array, "N"],
) -> Float[Array, "N q"]:
    """The least y_label - y_k that y = C z + c can have for z_lo <= z <= z_hi, [N, q].

    It is 0 at k = label. Where all others are positive, the class is certified. NaN
    where a traced label is not one of the classes.

    Raises:
        ValueError: labels are not [N] integers, or are known not to be classes.
    """
    given: Any = labels if hasattr(labels, "dtype") else np.asarray(labels)
    labels = class_labels(integer_labels(given, len(z_lo)), len(C))
    # By a product, as indexing C by labels that are spread over a mesh is refused.
    own = jax.nn.one_hot(labels, len(C), dtype=C.dtype)
    chosen = jnp.matmul(own, C, precision="highest")
    difference = chosen[:, None] - C[None]
    centre, radius = (z_lo + z_hi) / 2, (z_hi - z_lo) / 2
    least = jnp.einsum("nqi,ni->nq", difference, centre)
    least -= jnp.einsum("nqi,ni->nq", jnp.abs(difference), radius)
    least += jnp.matmul(own, c[:, None], precision="highest") - c[None]
    return jnp.where(labels[:, None] >= 0, least, jnp.nan)


def certified(
    margins: Float[Array, "N q"], labels: Int[Array, "N"]
) -> Bool[Array, "N"]:
    """Whether no other class can win: all `margins` but that of the label positive."""
    others = ~jax.nn.one_hot(labels, margins.shape[1], dtype=bool)
    return jnp.where(others, margins, jnp.inf).min(1) > 0
