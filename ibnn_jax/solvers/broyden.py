"""Broyden's method with limited memory."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ibnn_jax.iterate import Solver, select
from ibnn_jax.solvers.memory import push, square_norm
from ibnn_jax.solvers.picard import precondition, step_sizes


@dataclass(frozen=True)
class Broyden(Solver):
    """z <- z + s, s = M r, with M an estimate of the inverse Hessian that learns from every step (good Broyden).

    After a step s the residual has changed by -h, h = H s for a mean Hessian H, and M is corrected by rank one so
    that M h = s:

        M <- M + (s - M h) (M^T s)^T / (s . M h)

    kept as M = P + sum_j u_j v_j^T. P is the preconditioner of the safe Picard step (`picard.precondition`), close to
    1 / (1 - lam d) inside a cluster. When the memory is full it is emptied and P renewed at the current z.

    Safeguard, as in `Anderson`: a step that used the memory is kept only if it brings |r| down by 1% of the best so
    far (less for a shortened step). Otherwise z stays, but M has learnt from the trial, and half the step is tried
    next; after the fourth failure in a row the memory restarts from a safe step. Past the uniqueness bound all steps
    are Picard steps, which end in the solution that descent of the energy reaches.

    Steps to a tolerance of 1e-9 in float64 for lam in [-20, 0.9 bound], p up to 30, normal and wide inputs and ties,
    36 or 64 neurons: median at most 10, most 100 (Uniform), 640 (Window); lam = -20 or -5 with p = 30 needs the most.

    Args:
        memory: most rank-one terms kept.

    Raises:
        ValueError: memory is not a positive integer.

    References: Broyden, A class of methods for solving nonlinear simultaneous equations (1965); Kelley, Iterative
    methods for linear and nonlinear equations (1995), chapter 7.
    """

    memory: int = 20

    def __post_init__(self):
        if (
            not isinstance(self.memory, int)
            or isinstance(self.memory, bool)
            or self.memory < 1
        ):
            raise ValueError(
                f"Broyden: memory must be a positive integer; got {self.memory!r}"
            )

    def init(self, problem, z):
        r = problem.residual(z)
        empty = jnp.zeros((len(z), self.memory, z.shape[1]), z.dtype)
        return _State(
            z,
            r,
            square_norm(r),
            jnp.ones_like(z[:, 0]),
            step_sizes(problem, z),
            empty,
            empty,
        )

    def step(self, problem, state, active, unrolled):
        z, r, best, scale, a, u, v = state
        full = (v[:, -1] != 0).any(-1)
        restart = ~problem.unique | full | (scale < 0.1)
        u, v = select(restart, (0 * u, 0 * v), (u, v))
        safe = (v == 0).all((-1, -2))
        scale = jnp.where(safe, 1, scale)
        a = select(safe, step_sizes(problem, z), a)

        s = scale[:, None] * _apply(a, u, v, r)
        trial = z + s
        r_trial = problem.residual(trial)
        square = square_norm(r_trial)
        accept = safe | (square <= (1 - 0.01 * scale) ** 2 * best)

        mh = _apply(a, u, v, r - r_trial)
        bottom = (s * mh).sum(-1)
        usable = bottom > 1e-3 * jnp.sqrt(square_norm(s) * square_norm(mh))
        u_new = (s - mh) / jnp.where(usable, bottom, 1)[:, None]
        v_new = _apply(a, v, u, s)  # M^T s
        u, v = select(usable, (push(u, u_new), push(v, v_new)), (u, v))
        kept = select(
            accept,
            (trial, r_trial, jnp.minimum(best, square), jnp.ones_like(scale)),
            (z, r, best, scale / 2),
        )
        return _State(*kept, a, u, v)


def _apply(a, u, v, x):
    """(P + sum_j u_j v_j^T) x; swap u and v for the transpose, since P is symmetric."""
    return precondition(a, x) + jnp.einsum(
        "gmn,gm->gn", u, jnp.einsum("gmn,gn->gm", v, x)
    )


class _State(NamedTuple):
    z: Float[Array, "G n"]
    r: Float[Array, "G n"]
    best: Float[Array, "G"]  # the smallest |r|^2 so far
    scale: Float[Array, "G"]  # how much of the next step to take
    a: Float[Array, "G n"]  # the step sizes inside P
    u: Float[Array, "G m n"]  # rank-one terms, newest first; zero where not yet filled
    v: Float[Array, "G m n"]
