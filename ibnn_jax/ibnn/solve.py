"""Implicit bias as functions: solve, implicit_bias, solve_adjoint; what "auto" is."""

from dataclasses import dataclass
from typing import Literal, TypedDict, Unpack, cast, overload

import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jaxtyping import Float

from ibnn_jax.core.adjoint import AbstractAdjoint
from ibnn_jax.core.linear_solve import LinearSettings
from ibnn_jax.core.options import check_count, check_steps, check_tol, real_array
from ibnn_jax.core.solution import Result, Solution, Stats
from ibnn_jax.core.solve import (
    OR_AUTO,
    check_solver,
    fixed_point_with,
    resolved_adjoint,
    settings_for,
    solve_adjoint_with,
    solve_with,
)
from ibnn_jax.core.solver import AbstractSolver, SolveSettings
from ibnn_jax.ibnn.couplings import Coupling, Uniform, check_coupling
from ibnn_jax.ibnn.equation import IBNNProblem
from ibnn_jax.ibnn.layout import bind, check_same_shape
from ibnn_jax.ibnn.mean_field.solver import MeanField
from ibnn_jax.ibnn.sharding import over_mesh
from ibnn_jax.solvers.newton import Newton

# Up to here exact pairwise solutions cost at most four times what MeanField would.
SMALL_GROUP = 32


def solve(
    y: Float[Array, "..."],
    lam,
    p,
    coupling: Coupling,
    *,
    solver: AbstractSolver | str = "auto",
    tol: float | None = None,
    max_steps: int | None = None,
    trace: bool = False,
    strict: bool = False,
    start: Float[Array, "..."] | None = None,
) -> Solution:
    """Solve z_i = y_i - lam sum_k w_ik sigma(p (z_k - z_i)) in every group (Eq. 4).

    Args:
        y: input of any shape, float32 or float64 (half precision is solved in float32
            and returned in its own dtype).
        lam, p: scalars or arrays that broadcast against y with size 1 on the coupled
            axes; p > 0.
        coupling: `Uniform`, `Window` or `Dense`.
        solver: solver options, e.g. `Newton()`; "auto" is `MeanField()` for Uniform
            groups of more than 32 neurons with a smooth sigma, else `Newton()`.
        tol: a group has converged when max|r| <= tol (1 + s/2 + min(|lam| R, s)) and
            max|r| <= s / 1000, with r = y - lam B(z) - z the residual, s = max(y) -
            min(y) and R the largest row sum of w; None takes 1e-6 in float32, 1e-11 in
            float64 (MeanField: its `default_tol`, and a stricter rule); never below
            4 eps. A common offset of y has no part in it; one beside which the dtype
            cannot hold z gives `Result.MAX_STEPS`.
        max_steps: most solver steps, 500 when None.
        trace: also return the residual after every step (exact solvers only).
        strict: for debugging outside jit: raise FloatingPointError if any group did
            not converge.
        start: where to start, of the shape of y (exact solvers only). Below the
            uniqueness bound it changes the steps alone; past it, which solution is
            found.

    Returns:
        Solution(value, result, stats): z with the shape and dtype of y; `Result` codes
        and `Stats` per group, with the shape of y without its coupled axes. Nothing
        raises inside jit: look at `result`. Not differentiable: use `implicit_bias`.

    Raises:
        ValueError: y, lam or p does not fit (see `ibnn.layout.bind`); unknown solver;
            tol or max_steps not positive; start of another shape.
    """
    options = _Options(solver, tol, max_steps, trace)
    solution = _on_groups(options, solve_with, y, lam, p, coupling, start)
    if strict:
        _raise_unless_converged(solution)
    return solution


class _Keywords(TypedDict, total=False):
    """The keywords that all overloads of `implicit_bias` take, for type checkers."""

    solver: AbstractSolver | str
    adjoint: AbstractAdjoint | None
    tol: float | None
    max_steps: int | None
    start: Array | None


@overload
def implicit_bias(
    y,
    lam,
    p,
    coupling: Coupling,
    *,
    return_solution: Literal[True],
    **options: Unpack[_Keywords],
) -> Solution: ...
@overload
def implicit_bias(
    y,
    lam,
    p,
    coupling: Coupling,
    *,
    has_stats: Literal[True],
    **options: Unpack[_Keywords],
) -> tuple[Array, Stats]: ...
@overload
def implicit_bias(
    y, lam, p, coupling: Coupling, **options: Unpack[_Keywords]
) -> Array: ...
def implicit_bias(
    y: Float[Array, "..."],
    lam,
    p,
    coupling: Coupling,
    *,
    solver: AbstractSolver | str = "auto",
    adjoint: AbstractAdjoint | None = None,
    tol: float | None = None,
    max_steps: int | None = None,
    start: Float[Array, "..."] | None = None,
    return_solution: bool = False,
    has_stats: bool = False,
):
    """The solution z of Eq. (4), differentiable in y, lam, p and a Dense w.

    Args:
        y, lam, p, coupling, solver, tol, max_steps, start: as in `solve`.
        adjoint: `Implicit()` (default), `Unrolled()` or `Phantom(k)`.
        return_solution: return the `Solution`, with result codes, instead of z.
        has_stats: return (z, Stats) instead of z.

    Returns:
        z, of the shape and dtype of y.

    Raises:
        ValueError: as `solve`; an adjoint that does not fit the solver; return_solution
            and has_stats together.

    Example:
        z = ibnn_jax.implicit_bias(y, -0.5, 10.0, ibnn_jax.Uniform((-1,)))
    """
    if return_solution and has_stats:
        raise ValueError(
            "give return_solution or has_stats, not both: the Solution holds the stats"
        )
    adjoint = resolved_adjoint(adjoint)
    if adjoint.needs_exact_solver and _is_auto(solver):
        solver = Newton()

    def solve_groups(settings, problem, start):
        adjoint.check(settings)
        return fixed_point_with(settings, adjoint, problem, start)

    options = _Options(solver, tol, max_steps)
    solution = _on_groups(options, solve_groups, y, lam, p, coupling, start)
    if return_solution:
        return solution
    return (solution.value, solution.stats) if has_stats else solution.value


def solve_adjoint(
    z, v, lam, p, coupling: Coupling, *, tol: float | None = None, max_steps: int = 500
) -> Solution:
    """u with (I + lam DB(z)) u = v, the adjoint system at a solution z (Eq. 28).

    Solved on the exact pairwise operator.

    Args:
        z, v: the solution and the cotangent, same shape.
        lam, p, coupling: as in `solve`.
        tol: max|v - H u| <= tol max|v|; None takes 1e-6 in float32, 1e-11 in float64.
        max_steps: most steps of the linear solver.

    Returns:
        Solution: u in `value`; `stats.residual` is the true max|v - H u| per group.

    Raises:
        ValueError: as `solve`; shapes of z and v differ.
    """
    check_same_shape("z", z, "v", v)
    settings = LinearSettings(tol, max_steps)

    def local(z, lam, p, coupling, v):
        problem, layout = bind(z, lam, p, coupling)
        cotangent = layout.to_groups(v.astype(problem.y.dtype))
        solution = solve_adjoint_with(settings, problem, problem.y, cotangent)
        return layout.restore(solution, z.dtype)

    return over_mesh(local, real_array("z", z), lam, p, coupling, real_array("v", v))


def default_solver(coupling: Coupling, neurons: int) -> AbstractSolver:
    """The solver that "auto" stands for, for groups of so many neurons.

    Raises:
        ValueError: what is given is no coupling, or no number of neurons.
    """
    check_coupling(coupling)
    neurons = check_count("neurons", neurons)
    uniform = isinstance(coupling, Uniform) and coupling.sigma.smooth
    return MeanField() if uniform and neurons > SMALL_GROUP else Newton()


def check_options(coupling, solver, adjoint, tol, max_steps):
    """(tol, max_steps) as Python numbers; checks what can be checked without a y.

    Raises:
        ValueError: an argument that `implicit_bias` would refuse whatever y is.
    """
    check_coupling(coupling)
    if not _is_auto(solver):
        check_solver(solver, OR_AUTO)
    adjoint = resolved_adjoint(adjoint)
    if isinstance(solver, MeanField):
        uniform = isinstance(coupling, Uniform)
        solver.check_operator(coupling.bind((2,)) if uniform else None)
        adjoint.check(SolveSettings(solver, 1.0, 1))
    return check_tol(tol), check_steps("max_steps", max_steps)


def _is_auto(solver) -> bool:
    return isinstance(solver, str) and solver == "auto"


@dataclass(frozen=True)
class _Options:
    """The options of a solve as the user gave them; `settings` resolves them."""

    solver: AbstractSolver | str
    tol: float | None
    max_steps: int | None
    trace: bool = False

    def settings(self, problem: IBNNProblem, coupling: Coupling, start):
        solver = _resolve_solver(self.solver, problem, coupling, start)
        return settings_for(solver, problem, self.tol, self.max_steps, self.trace)


def _on_groups(options: _Options, solve_groups, y, lam, p, coupling, start) -> Solution:
    """Lay the arguments out on groups, solve these, and go back to the axes of y."""
    y = real_array("y", y)
    if start is not None:
        start = real_array("start", start)
        check_same_shape("start", start, "y", y)

    def local(y, lam, p, coupling, start):
        problem, layout = bind(y, lam, p, coupling)
        if start is not None:
            start = layout.to_groups(jnp.asarray(start, problem.y.dtype))
        settings = options.settings(problem, coupling, start)
        return layout.restore(solve_groups(settings, problem, start), y.dtype)

    return over_mesh(local, y, lam, p, coupling, start)


def _resolve_solver(
    solver, problem: IBNNProblem, coupling: Coupling, start
) -> AbstractSolver:
    """The solver that "auto" stands for, or the one given."""
    if _is_auto(solver):
        if start is not None:
            return Newton()
        return default_solver(coupling, problem.y.shape[1])
    if start is not None and isinstance(solver, MeanField):
        raise ValueError(
            "MeanField does not step on the neurons, so it takes no start. "
            "Use solver=Newton()"
        )
    check_solver(solver, OR_AUTO)
    return cast(AbstractSolver, solver)


def _raise_unless_converged(solution: Solution) -> None:
    result, (_, residual, converged, _) = solution[1:]
    if isinstance(converged, Tracer):
        raise ValueError(
            "strict=True looks at the result, which jit and its like have not computed "
            "yet; inside of them look at solution.result"
        )
    if bool(converged.all()):
        return
    broken = result == Result.NONFINITE
    late = ~converged & ~broken
    said = []
    if bool(broken.any()):
        said.append(
            f"{int(broken.sum())} hold NaN or infinity in y, lam, w or start, or p "
            "that is not positive, or left the range of the dtype"
        )
    if bool(late.any()):
        most = float(jnp.where(late, residual, 0).max())
        said.append(
            f"{int(late.sum())} did not converge, with residuals of up to {most:.3g}: "
            "raise max_steps or tol"
        )
    raise FloatingPointError(f"of {converged.size} groups " + "; ".join(said))
