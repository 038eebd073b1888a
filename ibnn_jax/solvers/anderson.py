"""Anderson acceleration of the damped Picard step."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ibnn_jax.iterate import Solver, select
from ibnn_jax.solvers.picard import precondition, step_sizes


@dataclass(frozen=True)
class Anderson(Solver):
    """Type-II Anderson acceleration: combine the last steps so that their residuals cancel as far as they can.

    With g = P r the safe step of `Picard`, and the last m changes dz and dg,

        z <- z + g - sum_j gamma_j (dz_j + dg_j),    gamma = argmin |g - sum_j gamma_j dg_j|

    The normal equations are m x m: the columns dg_j are scaled to unit length, then a ridge is added, so it is relative.

    Safeguard: a combination is kept only if it brings |r| to at most 0.99 of the best so far; otherwise that step
    leaves z where it is, and the memory restarts from a safe step. Either combinations are kept without end, and
    |r| goes to zero, or safe steps remain in the end, which converge on their own. Past the uniqueness bound
    acceleration could end at a saddle which descent only passes by (seen where it started at p max|r| < 0.1), so all
    steps there are Picard steps.

    Steps to a tolerance of 1e-9, float64, 64 neurons, lam in [-20, 0.9 bound], p up to 30: at most 96 (Uniform),
    150 (Window), 130 (Dense); the median is below 10.

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
        if not isinstance(self.window, int) or isinstance(self.window, bool) or self.window < 1:
            raise ValueError(f"Anderson: window must be a positive integer; got {self.window!r}")
        if not self.ridge >= 0:
            raise ValueError(f"Anderson: ridge must not be negative; got {self.ridge!r}")

    def init(self, problem, z):
        r = problem.residual(z)
        empty = jnp.zeros((len(z), self.window, z.shape[1]), z.dtype)
        return _State(z, r, precondition(step_sizes(problem, z), r), _square(r), empty, empty)

    def step(self, problem, state, active, unrolled):
        z, r, g, best, dz, dg = state
        safe = ~problem.unique | (dg == 0).all((-1, -2))
        gamma = jnp.where(safe[:, None], 0, self._coefficients(dg, g))
        trial = z + g - jnp.einsum("gm,gmn->gn", gamma, dz + dg)
        r_trial = problem.residual(trial)
        g_trial = precondition(step_sizes(problem, trial), r_trial)

        square = _square(r_trial)
        accept = safe | (square <= 0.99**2 * best)
        moved = _State(
            trial, r_trial, g_trial, jnp.minimum(best, square), _push(dz, trial - z), _push(dg, g_trial - g)
        )
        return select(accept, moved, _State(z, r, g, best, 0 * dz, 0 * dg))

    def _coefficients(self, dg, g):
        length = jnp.sqrt(_square(jax.lax.stop_gradient(dg)))
        length = jnp.where(length > 0, length, 1)  # a slot not yet filled: its column is zero, and so its gamma
        unit = dg / length[:, :, None]
        ridge = max(self.ridge, 10 * float(jnp.finfo(g.dtype).eps))
        gram = jnp.einsum("gmn,gkn->gmk", unit, unit) + ridge * jnp.eye(self.window, dtype=g.dtype)[None]
        return _solve(gram, jnp.einsum("gmn,gn->gm", unit, g)) / length


def _solve(a: Float[Array, "G m m"], b: Float[Array, "G m"]) -> Float[Array, "G m"]:
    """x with a x = b, a positive definite and small: plain elimination, the same on every device, needs no LAPACK."""
    rows = jnp.concatenate([a, b[:, :, None]], -1)
    for j in range(a.shape[1]):
        pivot = rows[:, j] / rows[:, j, j, None]
        rows = (rows - rows[:, :, j, None] * pivot[:, None]).at[:, j].set(pivot)
    return rows[:, :, -1]


def _square(v):
    return (v * v).sum(-1)


def _push(memory, new):
    return jnp.concatenate([new[:, None], memory[:, :-1]], 1)


class _State(NamedTuple):
    z: Float[Array, "G n"]
    r: Float[Array, "G n"]
    g: Float[Array, "G n"]  # the safe step from z
    best: Float[Array, "G"]  # the smallest |r|^2 so far
    dz: Float[Array, "G m n"]  # the last changes of z and g, newest first; zero where not yet filled
    dg: Float[Array, "G m n"]
