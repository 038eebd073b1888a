"""Solve any problem: the Solution alone, or one whose value is differentiable."""

import difflib
from functools import partial

import jax

from ibnn_jax.core.adjoint import AbstractAdjoint, Implicit
from ibnn_jax.core.batching import full_precision
from ibnn_jax.core.linear_solve import LinearSettings, solve_adjoint
from ibnn_jax.core.options import check_steps, check_tol, real_array
from ibnn_jax.core.problem import AbstractProblem
from ibnn_jax.core.solution import Solution
from ibnn_jax.core.solver import AbstractSolver, SolveSettings

MAX_STEPS = 500
SOLVERS = (
    "Newton",
    "Anderson",
    "Broyden",
    "GradientDescent",
    "Picard",
    "MeanField",
)
OR_AUTO = '"auto" or '  # for messages where "auto" is taken beside a solver


def solve(
    problem: AbstractProblem,
    solver: AbstractSolver,
    *,
    tol: float | None = None,
    max_steps: int | None = None,
    trace: bool = False,
    start=None,
) -> Solution:
    """Solve r(z) = 0 in every group of a problem.

    Args:
        problem: G systems of n unknowns.
        solver: e.g. `ibnn_jax.Newton()`.
        tol: relative, see `AbstractProblem.tolerance`; None takes the solver's.
        max_steps: most steps, 500 when None.
        trace: keep the residual after every step in `stats.trace`.
        start: [G, n], where to start, cast to the dtype of `problem.start()`, which
            None takes.

    Returns:
        Solution with value [G, n]. Not differentiable: use `fixed_point`.

    Raises:
        ValueError: solver, tol or max_steps is not what it should be; a problem that is
            not registered as a pytree; start of another shape.
    """
    settings = settings_for(solver, problem, tol, max_steps, trace)
    return solve_with(settings, problem, _checked_start(problem, start))


def fixed_point(
    problem: AbstractProblem,
    solver: AbstractSolver,
    adjoint: AbstractAdjoint | None = None,
    *,
    tol: float | None = None,
    max_steps: int | None = None,
    start=None,
) -> Solution:
    """As `solve`, with a value that is differentiable in every leaf of the problem.

    Args:
        adjoint: `Implicit()` when None, `Unrolled()` or `Phantom(k)`.

    Raises:
        ValueError: as `solve`; an adjoint that does not fit the solver.
    """
    adjoint = resolved_adjoint(adjoint)
    settings = settings_for(solver, problem, tol, max_steps, False)
    adjoint.check(settings)
    return fixed_point_with(settings, adjoint, problem, _checked_start(problem, start))


def settings_for(
    solver: AbstractSolver, problem: AbstractProblem, tol, max_steps, trace: bool
) -> SolveSettings:
    """The settings, resolved and checked."""
    check_solver(solver)
    _check_problem(problem)
    solver.check(problem)
    tol, max_steps = check_tol(tol), check_steps("max_steps", max_steps)
    if trace and not solver.exact:
        raise ValueError(
            "trace shows the steps of an exact solver; "
            f"{type(solver).__name__} has none on y. Use solver=Newton()"
        )
    if tol is None:
        tol = solver.tolerance_for(jax.eval_shape(problem.start).dtype)
    return SolveSettings(solver, tol, max_steps or MAX_STEPS, trace)


def _check_problem(problem) -> None:
    """Raise ValueError for what is no problem, or none that jit takes."""
    name = type(problem).__name__
    if not isinstance(problem, AbstractProblem):
        raise ValueError(
            "problem must be an AbstractProblem, e.g. a subclass with residual and "
            f"start; got {name}"
        )
    if jax.tree_util.all_leaves([problem]):
        raise ValueError(
            f"{name} must be registered as a pytree: decorate it, and each subclass, "
            "by jax.tree_util.register_dataclass over dataclass(frozen=True), as in "
            "the example of AbstractProblem"
        )


def _checked_start(problem: AbstractProblem, start):
    """start as an array like `problem.start()`; ValueError for another shape."""
    if start is None:
        return None
    like = jax.eval_shape(problem.start)
    start = real_array("start", start)
    if start.shape != like.shape:
        raise ValueError(
            f"start must have the shape of problem.start(), {like.shape}; "
            f"got {start.shape}"
        )
    return start.astype(like.dtype)


def check_solver(solver, known: str = "") -> None:
    """Raise ValueError for what is no solver, with the nearest right spelling.

    Args:
        known: names of what else may be given, for the message.
    """
    if isinstance(solver, AbstractSolver):
        try:
            hash(solver)
        except TypeError:
            raise ValueError(
                f"{type(solver).__name__} must be hashable, as options of jit are: "
                "make it a @dataclass(frozen=True)"
            ) from None
        return
    given = solver.replace("_", "") if isinstance(solver, str) else ""
    given = solver.__name__ if isinstance(solver, type) else given
    named = {name.lower(): name for name in SOLVERS}
    near = difflib.get_close_matches(given.lower(), named, 1)
    hint = f"ibnn_jax.{named[near[0]]}()" if near else "ibnn_jax.Newton()"
    raise ValueError(
        f"unknown solver {solver!r}; use {known}options such as {hint}. "
        f"There are {', '.join(SOLVERS)}"
    )


def resolved_adjoint(adjoint) -> AbstractAdjoint:
    """The adjoint that is meant; ValueError for what is none."""
    if adjoint is None:
        return Implicit()
    if not isinstance(adjoint, AbstractAdjoint):
        raise ValueError(
            f"adjoint must be Implicit(), Unrolled() or Phantom(k); got {adjoint!r}"
        )
    return adjoint


# Compiled here, so that calls outside jit too are compiled once for each shape and
# each choice of settings: docs/notes/xla.md#compile-calls-outside-jit-too.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0)
@full_precision
def solve_with(settings: SolveSettings, problem: AbstractProblem, start) -> Solution:
    """`solve`, compiled, with settings that are checked already."""
    return settings.solver.solve(problem, settings, start)[0]


def _no_derivative(*_):
    raise TypeError(
        "solve is not differentiable; the same z is, as ibnn_jax.implicit_bias, "
        "ibnn_jax.nemon.fixed_point, or ibnn_jax.core.fixed_point for a problem of "
        "your own"
    )


solve_with.defvjp(lambda *args: (solve_with(*args), None), _no_derivative)


@partial(jax.jit, static_argnums=(0, 1))
@full_precision
def fixed_point_with(
    settings: SolveSettings, adjoint: AbstractAdjoint, problem: AbstractProblem, start
) -> Solution:
    """`fixed_point`, compiled, with settings that are checked already."""
    return adjoint.apply(settings, problem, start)


@partial(jax.jit, static_argnums=0)
@full_precision
def solve_adjoint_with(
    settings: LinearSettings, problem: AbstractProblem, z, v
) -> Solution:
    """`linear_solve.solve_adjoint`, compiled; its settings are checked already."""
    return solve_adjoint(problem, z, v, settings)
