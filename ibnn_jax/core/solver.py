"""What a solver is: it solves a problem, and pulls cotangents back through the
solution.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ibnn_jax.core.batching import in_blocks, merge_vmap
from ibnn_jax.core.iterate import iterate
from ibnn_jax.core.linear_solve import solve_adjoint
from ibnn_jax.core.problem import AbstractProblem
from ibnn_jax.core.solution import Solution

if TYPE_CHECKING:
    from ibnn_jax.core.adjoint import Implicit

State = Any  # a pytree with the fields z and r, every leaf led by the groups


class AbstractSolver(ABC):
    """An algorithm for r(z) = 0, as a frozen dataclass of its options."""

    exact: ClassVar[bool] = True  # it steps on all n unknowns, not on a reduction

    def tolerance_for(self, dtype) -> float:
        """The tolerance when none is given: 1e-6 in float32, 1e-11 in float64."""
        return 1e-11 if jnp.dtype(dtype).itemsize == 8 else 1e-6

    def check(self, problem: AbstractProblem) -> None:
        """Raise ValueError where the problem is not one for this solver."""
        del problem  # any problem is, unless a solver says otherwise

    @abstractmethod
    def solve(
        self, problem: AbstractProblem, settings: "SolveSettings", start=None
    ) -> tuple[Solution, Any]:
        """(the Solution on groups, the residuals that `pullback` is given)."""

    @abstractmethod
    def pullback(
        self,
        problem: AbstractProblem,
        residuals: Any,
        v: Float[Array, "G n"],
        adjoint: "Implicit",
    ) -> AbstractProblem:
        """The cotangent of the problem, in its own form, for the cotangent v of z."""


@dataclass(frozen=True)
class SolveSettings:
    """How to solve: all of it static, so that one program is compiled per choice.

    Args:
        solver: the algorithm. tol: relative, see `AbstractProblem.tolerance`.
        max_steps: most steps. trace: keep the residual after every step.
    """

    solver: AbstractSolver
    tol: float
    max_steps: int
    trace: bool = False


class IterativeSolver(AbstractSolver):
    """A solver that repeats one step; `core.iterate` owns the loop."""

    patience: ClassVar[int] = 100  # steps without progress before a group is given up

    @abstractmethod
    def init(self, problem: AbstractProblem, z: Float[Array, "G n"]) -> State:
        """The state at the start z, its residual evaluated."""

    @abstractmethod
    def step(
        self,
        problem: AbstractProblem,
        state: State,
        active: Bool[Array, "G"],
        unrolled: bool,
    ) -> State:
        """One step. The loop discards what it returns for groups that are not active.

        unrolled: reverse mode runs through the step, so it must use no while_loop on
            values that are differentiated.
        """

    def solve(self, problem, settings, start=None):
        def on_groups(problem, start):
            return iterate(self, problem, settings, start)

        return merge_vmap(in_blocks(on_groups, _largest_row))(problem, start)

    def pullback(self, problem, residuals, v, adjoint):
        def on_groups(problem, z, v):
            return solve_adjoint(problem, z, v, adjoint.linear).value

        z = residuals  # of the centred problem
        solve_groups = merge_vmap(in_blocks(on_groups, _largest_row))
        u = solve_groups(problem.centred()[0], z, v)
        return problem.cotangent(z, u)  # dL/dtheta = u . dr/dtheta


def _largest_row(problem: AbstractProblem) -> int:
    return problem.largest_row
