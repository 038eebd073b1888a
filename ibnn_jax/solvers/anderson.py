"""Anderson acceleration of the damped Picard step."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ibnn_jax.iterate import Solver, select
from ibnn_jax.solvers.memory import push, square_norm
from ibnn_jax.solvers.picard import precondition, step_sizes


@dataclass(frozen=True)
class Anderson(Solver):
    """Type-II Anderson acceleration: combine the last steps so that their residuals cancel as far as they can.

    With g = P r the safe step of `Picard`, and the last m changes dz and dg,

        z <- z + g - sum_j gamma_j (dz_j + dg_j),    gamma = argmin |g - sum_j gamma_j dg_j|

    The normal equations are m x m: the columns dg_j are scaled to unit length, then a ridge is added, so it is relative.

    Safeguard: a combination is kept only if it brings |r| down by 1% of the best so far (less for a shortened step).
    Otherwise z stays, but the memory has learnt from the trial, and half the next combined step is tried; after the
    fourth failure in a row the memory restarts from a safe step. Either combinations are kept without end, and |r|
    goes to zero, or in the end there are only safe steps, which converge on their own. Past the uniqueness bound
    acceleration could end at a saddle which descent only passes by (seen where it started at p max|r| < 0.1), so all
    steps there are Picard steps.

    Steps to a tolerance of 1e-9 in float64 for lam in [-20, 0.9 bound], p up to 30, normal and wide inputs and ties,
    36 or 64 neurons: median below 10, most 130 (Uniform), 290 (Window); lam = -20 or -5 with p = 30 needs the most.

    Differentiated through its iterations, the derivative lags behind z (relative error up to 1e-4 at convergence).

    Args:
        window: m, the most changes remembered.
        ridge: relative to the unit columns; at least 10 machine epsilons are used.

    Raises:
        ValueError: window is not a positive integer, or ridge is negative.

    References: Anderson (1965); Walker and Ni, Anderson acceleration for fixed-point iterations (2011); Zhang,
    O'Donoghue and Boyd, Globally convergent type-I Anderson acceleration (2020), for the safeguard.
    """

    window: int = 5
    ridge: float = 1e-8

    def __post_init__(self):
        if (
            not isinstance(self.window, int)
            or isinstance(self.window, bool)
            or self.window < 1
        ):
            raise ValueError(
                f"Anderson: window must be a positive integer; got {self.window!r}"
            )
        if not self.ridge >= 0:
            raise ValueError(
                f"Anderson: ridge must not be negative; got {self.ridge!r}"
            )

    def init(self, problem, z):
        r = problem.residual(z)
        empty = jnp.zeros((len(z), self.window, z.shape[1]), z.dtype)
        return _State(
            z,
            r,
            precondition(step_sizes(problem, z), r),
            square_norm(r),
            jnp.ones_like(z[:, 0]),
            empty,
            empty,
        )

    def step(self, problem, state, active, unrolled):
        z, r, g, best, scale, dz, dg = state
        restart = ~problem.unique | (scale < 0.1)
        dz, dg = select(restart, (0 * dz, 0 * dg), (dz, dg))
        safe = (dg == 0).all((-1, -2))
        scale = jnp.where(safe, 1, scale)

        gamma = self._coefficients(dg, g)
        trial = z + scale[:, None] * (g - jnp.einsum("gm,gmn->gn", gamma, dz + dg))
        r_trial = problem.residual(trial)
        g_trial = precondition(step_sizes(problem, trial), r_trial)
        square = square_norm(r_trial)
        accept = safe | (square <= (1 - 0.01 * scale) ** 2 * best)

        moved = (
            trial,
            r_trial,
            g_trial,
            jnp.minimum(best, square),
            jnp.ones_like(scale),
        )
        kept = select(accept, moved, (z, r, g, best, scale / 2))
        return _State(*kept, push(dz, trial - z), push(dg, g_trial - g))

    def _coefficients(self, dg, g):
        length = jnp.sqrt(square_norm(jax.lax.stop_gradient(dg)))
        length = jnp.where(
            length > 0, length, 1
        )  # a slot not yet filled: its column is zero, and so its gamma
        unit = dg / length[:, :, None]
        ridge = max(self.ridge, 10 * float(jnp.finfo(g.dtype).eps))
        gram = (
            jnp.einsum("gmn,gkn->gmk", unit, unit)
            + ridge * jnp.eye(self.window, dtype=g.dtype)[None]
        )
        return _solve(gram, jnp.einsum("gmn,gn->gm", unit, g)) / length


def _solve(a: Float[Array, "G m m"], b: Float[Array, "G m"]) -> Float[Array, "G m"]:
    """x with a x = b, a positive definite and small: plain elimination, the same on every device, needs no LAPACK."""
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
    dz: Float[
        Array, "G m n"
    ]  # the last changes of z and g, newest first; zero where not yet filled
    dg: Float[Array, "G m n"]
