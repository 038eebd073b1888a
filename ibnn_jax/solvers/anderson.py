"""Anderson acceleration of the safe step."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ibnn_jax.core.batching import select
from ibnn_jax.core.options import check_count, check_number, settle
from ibnn_jax.core.solver import IterativeSolver
from ibnn_jax.solvers.safeguard import (
    acceptable,
    empty_memory,
    must_restart,
    push,
    square_norm,
)


@dataclass(frozen=True)
class Anderson(IterativeSolver):
    """Type-II Anderson acceleration: combine the last steps so that residuals cancel.

    With g = P r the safe step of the problem, and the last m changes dz and dg,

        z <- z + g - sum_j gamma_j (dz_j + dg_j)
        gamma = argmin |g - sum_j gamma_j dg_j|

    The normal equations are m x m: the columns dg_j are scaled to unit length, then a
    ridge is added, so it is relative. When a combination is kept:
    `ibnn_jax.solvers.safeguard`.

    Steps to a tolerance of 1e-9 in float64 for implicit bias with lam in
    [-20, 0.9 bound], p up to 30, normal and wide inputs and ties, 36 or 64 neurons:
    median below 10, most 130 (Uniform), 290 (Window); lam = -20 or -5 with p = 30 needs
    the most.

    Differentiated through its iterations, the derivative lags behind z (relative error
    up to 1e-4 at convergence).

    Args:
        window: m, the most changes remembered.
        ridge: relative to the unit columns; at least 10 machine epsilons are used.

    Raises:
        ValueError: window is not a positive integer, ridge negative or infinite.

    References: Anderson (1965); Walker and Ni, Anderson acceleration for fixed-point
    iterations (2011).
    """

    window: int = 5
    ridge: float = 1e-8

    def __post_init__(self):
        window = check_count("Anderson: window", self.window)
        ridge = check_number("Anderson: ridge", self.ridge)
        if not 0 <= ridge < math.inf:
            raise ValueError(
                f"Anderson: ridge must not be negative or infinite; got {self.ridge!r}"
            )
        settle(self, window=window, ridge=ridge)

    def init(self, problem, z):
        r = problem.residual(z)
        g = problem.precondition(problem.step_sizes(z), r)
        empty = empty_memory(z, self.window)
        best = square_norm(r)
        return _State(z, r, g, best, jnp.ones_like(best), empty, empty)

    def step(self, problem, state, active, unrolled):
        z, r, g, best, scale, dz, dg = state
        restart = must_restart(problem, scale)
        empty = jnp.zeros_like(dz), jnp.zeros_like(dg)  # 0 times NaN is NaN
        dz, dg = select(restart, empty, (dz, dg))
        safe = (dg == 0).all((-1, -2))
        scale = jnp.where(safe, 1, scale)

        gamma = self._coefficients(dg, g)
        combined = g - jnp.einsum("gm,gmn->gn", gamma, dz + dg)
        trial = z + scale[:, None] * combined
        r_trial = problem.residual(trial)
        g_trial = problem.precondition(problem.step_sizes(trial), r_trial)
        square = square_norm(r_trial)
        accept = safe | acceptable(square, best, scale)

        best_trial = jnp.minimum(best, square)
        moved = (trial, r_trial, g_trial, best_trial, jnp.ones_like(scale))
        current = select(accept, moved, (z, r, g, best, scale / 2))
        return _State(*current, push(dz, trial - z), push(dg, g_trial - g))

    def _coefficients(self, dg, g):
        length = jnp.sqrt(square_norm(jax.lax.stop_gradient(dg)))
        # A slot that is not filled yet has a column of zeros, and so gamma = 0.
        length = jnp.where(length > 0, length, 1)
        unit = dg / length[:, :, None]
        ridge = max(self.ridge, 10 * float(jnp.finfo(g.dtype).eps))
        identity = jnp.eye(self.window, dtype=g.dtype)[None]
        gram = jnp.einsum("gmn,gkn->gmk", unit, unit) + ridge * identity
        return _solve(gram, jnp.einsum("gmn,gn->gm", unit, g)) / length


def _solve(a: Float[Array, "G m m"], b: Float[Array, "G m"]) -> Float[Array, "G m"]:
    """x with a x = b, a positive definite and small.

    Gauss-Jordan elimination: the same on every device, and it needs no LAPACK.
    """
    rows = jnp.concatenate([a, b[:, :, None]], -1)
    for j in range(a.shape[1]):
        pivot = rows[:, j] / rows[:, j, j, None]
        rows = (rows - rows[:, :, j, None] * pivot[:, None]).at[:, j].set(pivot)
    return rows[:, :, -1]


class _State(NamedTuple):
    z: Float[Array, "G n"]
    r: Float[Array, "G n"]
    g: Float[Array, "G n"]  # the safe step from z
    best: Float[Array, "G"]  # the smallest |r|^2 so far
    scale: Float[Array, "G"]  # how much of the next step to take
    dz: Float[Array, "G m n"]  # the last changes of z, newest first; zero if not filled
    dg: Float[Array, "G m n"]  # and of g
