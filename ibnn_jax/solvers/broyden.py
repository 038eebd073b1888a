"""Broyden's method with limited memory."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ibnn_jax.core.batching import select
from ibnn_jax.core.options import check_count, settle
from ibnn_jax.core.solver import IterativeSolver
from ibnn_jax.solvers.safeguard import (
    acceptable,
    empty_memory,
    must_restart,
    push,
    square_norm,
)


@dataclass(frozen=True)
class Broyden(IterativeSolver):
    """z <- z + s, s = M r, with M an estimate of H^-1 that learns from every step.

    After a step s the residual has changed by -h, h = H s for a mean H = -Dr, and M is
    corrected by rank one so that M h = s ("good" Broyden):

        M <- M + (s - M h) (M^T s)^T / (s . M h)

    kept as M = P + sum_j u_j v_j^T. P is the safe step of the problem
    (`AbstractProblem.precondition`); under implicit bias it is close to
    1 / (1 - lam d) inside a cluster. When the memory is full it is emptied and P
    renewed at the current z. When a step is kept: `ibnn_jax.solvers.safeguard`.

    Steps to a tolerance of 1e-9 in float64 for implicit bias with lam in
    [-20, 0.9 bound], p up to 30, normal and wide inputs and ties, 36 or 64 neurons:
    median at most 10, most 100 (Uniform), 640 (Window); lam = -20 or -5 with p = 30
    needs the most.

    Args:
        memory: most rank-one terms kept.

    Raises:
        ValueError: memory is not a positive integer.

    References: Broyden, A class of methods for solving nonlinear simultaneous equations
    (1965); Kelley, Iterative methods for linear and nonlinear equations (1995),
    chapter 7.
    """

    memory: int = 20

    def __post_init__(self):
        settle(self, memory=check_count("Broyden: memory", self.memory))

    def init(self, problem, z):
        r = problem.residual(z)
        best = square_norm(r)
        empty = empty_memory(z, self.memory)
        a = problem.step_sizes(z)
        return _State(z, r, best, jnp.ones_like(best), a, empty, empty)

    def step(self, problem, state, active, unrolled):
        z, r, best, scale, a, u, v = state
        full = (v[:, -1] != 0).any(-1)
        u, v = select(full | must_restart(problem, scale), (0 * u, 0 * v), (u, v))
        safe = (v == 0).all((-1, -2))
        scale = jnp.where(safe, 1, scale)
        a = select(safe, problem.step_sizes(z), a)

        s = scale[:, None] * _apply(problem, a, u, v, r)
        trial = z + s
        r_trial = problem.residual(trial)
        square = square_norm(r_trial)
        accept = safe | acceptable(square, best, scale)

        mh = _apply(problem, a, u, v, r - r_trial)
        bottom = (s * mh).sum(-1)
        usable = bottom > 1e-3 * jnp.sqrt(square_norm(s) * square_norm(mh))
        u_new = (s - mh) / jnp.where(usable, bottom, 1)[:, None]
        v_new = _apply(problem, a, v, u, s)  # M^T s
        u, v = select(usable, (push(u, u_new), push(v, v_new)), (u, v))

        moved = (trial, r_trial, jnp.minimum(best, square), jnp.ones_like(scale))
        current = select(accept, moved, (z, r, best, scale / 2))
        return _State(*current, a, u, v)


def _apply(problem, a, u, v, x):
    """(P + sum_j u_j v_j^T) x; swap u and v for the transpose: P is symmetric."""
    coefficients = jnp.einsum("gmn,gn->gm", v, x)
    return problem.precondition(a, x) + jnp.einsum("gmn,gm->gn", u, coefficients)


class _State(NamedTuple):
    z: Float[Array, "G n"]
    r: Float[Array, "G n"]
    best: Float[Array, "G"]  # the smallest |r|^2 so far
    scale: Float[Array, "G"]  # how much of the next step to take
    a: Float[Array, "G n"]  # the step sizes inside P
    u: Float[Array, "G m n"]  # rank-one terms, newest first; zero if not filled
    v: Float[Array, "G m n"]
