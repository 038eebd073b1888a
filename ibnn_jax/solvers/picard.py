"""Damped Picard iteration: the simplest solver."""

from dataclasses import dataclass

from ibnn_jax.core.iterate import Simple
from ibnn_jax.core.options import check_between, settle
from ibnn_jax.core.solver import IterativeSolver


@dataclass(frozen=True)
class Picard(IterativeSolver):
    """z <- z + a r(z); a = 1 is the fixed-point iteration z <- y - lam B(z).

    Args:
        damping: a in (0, 1], or "auto", the safe step of the problem, which converges
            from any start. For implicit bias it lowers the energy at every step:

            - lam > 0: a = 1, the convex-concave procedure. Below the uniqueness bound
              it contracts by lam / bound; beyond, started from y, it ends in the
              solution that descent of the energy reaches.
            - lam <= 0: one size per neuron, found by majorisation
              (`IBNNProblem.step_sizes`). Linear convergence, at worst by
              1 - 1 / (1 + 2 |lam| p) a step, in practice faster.

            For NEMON it is the average iteration with the largest safe alpha.

    A fixed a = 1 with lam < 0 converges for certain only while |lam| < bound, any a
    while a < 2 / (1 + |lam| / bound).

    Steps of "auto" to a tolerance of 1e-9 with lam in [-20, 0.9 bound] and p up to 30:
    half of the cases took at most 15; wide inputs with |lam| p = 150 or 600 took up to
    700 under Uniform, and 1200 to more than 5000 under Window, which Anderson did in 90
    and 290.

    Raises:
        ValueError: damping is neither "auto" nor a number in (0, 1].

    References: paper Eq. 12; Yuille and Rangarajan, The concave-convex procedure
    (2003); Hunter and Lange, A tutorial on MM algorithms (2004); Geman and Reynolds,
    Constrained restoration and the recovery of discontinuities (1992).
    """

    damping: float | str = "auto"

    def __post_init__(self):
        if isinstance(self.damping, str) and self.damping == "auto":
            return
        name = 'Picard: damping, if not "auto",'
        damping = check_between(name, self.damping, 0, 1, closed=True)
        settle(self, damping=damping)

    def init(self, problem, z):
        return Simple(z, problem.residual(z))

    def step(self, problem, state, active, unrolled):
        z, r = state
        if self.damping == "auto":
            z = z + problem.precondition(problem.step_sizes(z), r)
        else:
            z = z + self.damping * r
        return Simple(z, problem.residual(z))
