"""The splitting solvers of monotone operator networks, for ReLU.

They converge where I - A is strongly monotone in the Euclidean norm, which mu(A) < 1
does not imply. ReLU is the projection on z >= 0, so its resolvent is ReLU itself,
whatever the step.

Reference: Winston and Kolter, Monotone operator equilibrium networks (2020).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ibnn_jax.core import IterativeSolver
from ibnn_jax.core.iterate import Simple
from ibnn_jax.core.options import check_between, settle
from ibnn_jax.nemon.equation import NEMONProblem
from ibnn_jax.nemon.matrices import DenseMatrix


@dataclass(frozen=True)
class ForwardBackward(IterativeSolver):
    """Forward-backward splitting: z <- relu(z - alpha (z - A z - u)).

    Contracts for alpha < 2 m / |I - A|^2 where I - A is monotone with constant m.

    Args:
        alpha: the step.

    Raises:
        ValueError: alpha is not positive; the problem is not dense with ReLU.
    """

    alpha: float = 0.5

    def __post_init__(self):
        _check_alpha(self)

    def check(self, problem):
        _check_problem(self, problem)

    def init(self, problem, z):
        return Simple(z, problem.residual(z))

    def step(self, problem, state, active, unrolled):
        assert isinstance(problem, NEMONProblem)
        z, _ = state
        z = jax.nn.relu(z - self.alpha * (z - problem.A.apply(z) - problem.u))
        return self.init(problem, z)


@dataclass(frozen=True)
class PeacemanRachford(IterativeSolver):
    """Alternate the resolvents of I - A and of ReLU, reflecting after each.

        x <- V (2 z - y + alpha u)
        y <- 2 x - (2 z - y)
        z <- relu(y)

    with V = (I + alpha (I - A))^-1, formed once per solve. Converges for every
    alpha > 0.

    Args:
        alpha: the step.

    Raises:
        ValueError: alpha is not positive; the problem is not dense with ReLU.
    """

    alpha: float = 1.0

    def __post_init__(self):
        _check_alpha(self)

    def check(self, problem):
        _check_problem(self, problem)

    def solve(self, problem, settings, start=None):
        return super().solve(self._with_resolvent(problem), settings, start)

    def init(self, problem, z):
        return _Reflected(z, problem.residual(z), z)

    def step(self, problem, state, active, unrolled):
        problem = self._with_resolvent(problem)
        reflected = 2 * state.z - state.y
        x = (reflected + self.alpha * problem.u) @ problem.resolvent.T
        y = 2 * x - reflected
        z = jax.nn.relu(y)
        return _Reflected(z, problem.residual(z), y)

    def _with_resolvent(self, problem) -> "_Prepared":
        if isinstance(problem, _Prepared):
            return problem
        assert isinstance(problem.A, DenseMatrix)  # by `check`
        identity = jnp.eye(len(problem.A.array), dtype=problem.A.dtype)
        inverse = jnp.linalg.inv(identity + self.alpha * (identity - problem.A.array))
        fields = (problem.A, problem.u, problem.eta, problem.certified)
        return _Prepared(*fields, problem.activation, inverse)


class _Reflected(NamedTuple):
    z: Float[Array, "G n"]
    r: Float[Array, "G n"]
    y: Float[Array, "G n"]  # before ReLU


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Prepared(NEMONProblem):
    """A problem with V at hand."""

    resolvent: Float[Array, "n n"]

    shared = ("A", "eta", "certified", "resolvent")


def _check_alpha(solver) -> None:
    name = f"{type(solver).__name__}: alpha"
    settle(solver, alpha=check_between(name, solver.alpha, 0, math.inf))


def _check_problem(solver, problem) -> None:
    dense = isinstance(getattr(problem, "A", None), DenseMatrix)
    relu = getattr(getattr(problem, "activation", None), "__name__", "") == "relu"
    if not dense or not relu:
        raise ValueError(
            f"{type(solver).__name__} solves z = relu(A z + u) with a dense A; "
            "use Anderson() or Picard() for other equations"
        )
