"""Gradient descent on the energy with an adaptive, tested step size."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ibnn_jax.core.batching import select
from ibnn_jax.core.options import check_between, settle
from ibnn_jax.core.solver import IterativeSolver


@dataclass(frozen=True)
class GradientDescent(IterativeSolver):
    """z <- z + tau r(z), r = -grad E (paper Eq. 12), tau from Barzilai and Borwein.

    Armijo's condition, E(z + tau r) <= E(z) - c tau |r|^2, is never tested by energies,
    whose difference drowns in rounding near the solution. It is implied, for c <= 1/2,
    by each of

    - tau <= 1 / L, L the largest possible curvature of E
      (`AbstractProblem.shortest_step`);
    - E convex (lam <= 0) and r(z + tau r).r >= c |r|^2: the slope at the far end still
      points downhill.

    A trial that meets neither is dropped: that step leaves z where it is and cuts tau
    to `shrink` of the secant estimate of the minimum on the line. An accepted one sets
    the next tau to that estimate, within [1 / L, 1]. For lam > 0, L = 1 and tau is 1
    throughout: every step is accepted and is the Picard step, so the solution reached
    is the one that descent from the start leads to, past the uniqueness bound too.

    A problem without an energy is stepped by 1 / L, its shortest step, throughout.

    Steps to a tolerance of 1e-9 in float64 for implicit bias with lam in
    [-20, 0.9 bound], p up to 30, 36 or 64 neurons: median 11 to 23, most 230 (Uniform),
    1130 (Window); a dropped trial counts as a step.

    Args:
        armijo: c, in (0, 1/2].
        shrink: factor in (0, 1) on the secant estimate after a rejected trial.

    Raises:
        ValueError: an option outside its range.

    References: Barzilai and Borwein, Two-point step size gradient methods (1988);
    Hager and Zhang, A new conjugate gradient method with guaranteed descent (2005), for
    line searches by slopes.
    """

    armijo: float = 0.1
    shrink: float = 0.8

    def __post_init__(self):
        name = "GradientDescent: armijo"
        armijo = check_between(name, self.armijo, 0, 0.5, closed=True)
        shrink = check_between("GradientDescent: shrink", self.shrink, 0, 1)
        settle(self, armijo=armijo, shrink=shrink)

    def init(self, problem, z):
        return _State(z, problem.residual(z), problem.shortest_step)

    def step(self, problem, state, active, unrolled):
        z, r, tau = state
        shortest = problem.shortest_step
        trial = z + tau * r
        r_trial = problem.residual(trial)

        fixed, fixed_trial = jax.lax.stop_gradient((r, r_trial))
        square = (fixed * fixed).sum(-1, keepdims=True)
        slope = (fixed * fixed_trial).sum(-1, keepdims=True)
        accept = (tau <= shortest) | (slope >= self.armijo * square)
        # |r|^2 - slope = tau r.Hr for some Hessian H between z and the trial.
        bend = square - slope
        secant = jnp.where(bend > 0, tau * square / jnp.where(bend > 0, bend, 1), 1)
        longest = 1 if problem.symmetric else shortest
        tau = jnp.where(accept, secant, self.shrink * secant)
        tau = jnp.clip(tau, shortest, longest)
        current = select(accept[:, 0], (trial, r_trial), (z, r))
        return _State(*current, tau)


class _State(NamedTuple):
    z: Float[Array, "G n"]
    r: Float[Array, "G n"]
    tau: Float[Array, "G 1"]
