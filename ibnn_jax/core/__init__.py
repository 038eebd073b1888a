"""Solving any system r(z) = 0 group by group; knows no equation.

problem.py       what a solver may ask of an equation
solver.py        what a solver is
iterate.py       the only loop: counting, stopping, freezing, non-finite values
adjoint.py       Implicit, Unrolled, Phantom
linear_solve.py  linear systems, the adjoint's among them
solution.py      Solution, Result, Stats
batching.py      blocks, merged vmaps, choices that depend on the backend
solve.py         solve and fixed_point for a problem of your own
options.py       checks of the numbers that are given as options
labels.py        checks of class labels
"""

from ibnn_jax.core.adjoint import AbstractAdjoint, Implicit, Phantom, Unrolled
from ibnn_jax.core.problem import AbstractProblem, Linearisation
from ibnn_jax.core.solution import Result, Solution, Stats
from ibnn_jax.core.solve import fixed_point, solve
from ibnn_jax.core.solver import AbstractSolver, IterativeSolver, SolveSettings

__all__ = [
    "AbstractAdjoint",
    "AbstractProblem",
    "AbstractSolver",
    "Implicit",
    "IterativeSolver",
    "Linearisation",
    "Phantom",
    "Result",
    "Solution",
    "SolveSettings",
    "Stats",
    "Unrolled",
    "fixed_point",
    "solve",
]
