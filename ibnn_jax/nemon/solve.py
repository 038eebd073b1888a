"""`solve` returns a Solution, `fixed_point` the differentiable z."""

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from ibnn_jax import core
from ibnn_jax.core import AbstractAdjoint, AbstractSolver, Solution
from ibnn_jax.core.options import check_steps, check_tol
from ibnn_jax.core.solve import (
    OR_AUTO,
    check_solver,
    resolved_adjoint,
    settings_for,
    solve_adjoint_with,
)
from ibnn_jax.nemon.equation import NEMONProblem, average_step, bind
from ibnn_jax.nemon.matrices import AbstractMatrix, as_matrix
from ibnn_jax.nemon.weights import check_gamma
from ibnn_jax.solvers import Newton, Picard

MAX_STEPS = 2000  # the average iteration at gamma = 0.99 needs more than the usual 500


def solve(
    A: Float[Array, "n n"] | AbstractMatrix,
    u: Float[Array, "... n"],
    activation: Callable[[Array], Array] = jax.nn.relu,
    eta: Float[Array, "n"] | None = None,
    *,
    solver: AbstractSolver | str = "auto",
    tol: float | None = None,
    max_steps: int | None = None,
    trace: bool = False,
) -> Solution:
    """Solve z = phi(A z + u), one system per row of u.

    Args:
        A: a square matrix, or a `Convolution` with u [..., rows, columns, channels].
        u: float32 or float64 (half precision is solved in float32 and returned in its
            own dtype).
        activation: phi, elementwise, nondecreasing, of slope at most 1.
        eta: weights of the norm in which mu(A) < 1 shows that z is unique; None takes
            the best.
        solver: any of `ibnn_jax.solvers`; `Picard()` is the average iteration of the
            paper, and "auto" is `Newton()`, which falls back on its steps.
        tol: a row has converged when max|phi(A z + u) - z| <= tol (1 + max|u|); None
            takes 1e-6 in float32, 1e-11 in float64; at least 4 machine epsilons. What
            rounding of A z alone may leave, eps |A|_inf max|z|, counts as converged.
        max_steps: most steps, 2000 when None.
        trace: keep the residual after every step in `stats.trace`.

    Returns:
        Solution(value, result, stats): z of the shape and dtype of u; `Result` codes
            and `Stats` per row.
        CONVERGED_NOT_UNIQUE says that mu(A) < 1 does not hold. Not differentiable: use
        `fixed_point`.

    Raises:
        ValueError: see `equation.bind`; an unknown solver, tol or max_steps not
            positive.
    """
    problem = bind(A, u, activation, eta)
    solver, max_steps = resolve(solver, max_steps)
    solution = core.solve(problem, solver, tol=tol, max_steps=max_steps, trace=trace)
    return unflatten(solution, problem, u)


def fixed_point(
    A: Float[Array, "n n"] | AbstractMatrix,
    u: Float[Array, "... n"],
    activation: Callable[[Array], Array] = jax.nn.relu,
    eta: Float[Array, "n"] | None = None,
    *,
    solver: AbstractSolver | str = "auto",
    adjoint: AbstractAdjoint | None = None,
    tol: float | None = None,
    max_steps: int | None = None,
    return_solution: bool = False,
):
    """The same z, differentiable in A and u.

    Args:
        adjoint: `Implicit()` when None, `Unrolled()`, or `Phantom(k)`, whose k = 1 is
            Jacobian-free. The implicit adjoint solves (I - D A)^T w = v, D =
            diag(phi'), matrix-free; rows where that fails get NaN.
        return_solution: return the `Solution` with its codes and residuals instead of
            z.

    Raises:
        ValueError: as `solve`; an adjoint that does not fit.
    """
    problem = bind(A, u, activation, eta)
    solution = differentiable(problem, solver, adjoint, tol, max_steps)
    solution = unflatten(solution, problem, u)
    return solution if return_solution else solution.value


def solve_adjoint(
    A: Float[Array, "n n"] | AbstractMatrix,
    u: Float[Array, "... n"],
    z: Float[Array, "... n"],
    v: Float[Array, "... n"],
    activation: Callable[[Array], Array] = jax.nn.relu,
    *,
    tol: float | None = None,
    max_steps: int = 500,
) -> Solution:
    """The adjoint system at a solution z: (I - D A)^T w = v, D = diag(phi'(A z + u)).

    Args:
        z, v: the solution and its cotangent, of the shape of u.
        tol: max|v - (I - D A)^T w| <= tol max|v|; None takes 1e-6 in float32, 1e-11 in
            float64.
        max_steps: most steps of the linear solver.

    Returns:
        Solution: w in `value`; `stats.residual` is the true residual, computed anew.
            dL/du = D w.

    Raises:
        ValueError: as `solve`; the shapes of u, z and v differ.
    """
    if not jnp.shape(u) == jnp.shape(z) == jnp.shape(v):
        shapes = ", ".join(str(jnp.shape(a)) for a in (u, z, v))
        raise ValueError(f"u, z and v must have one shape; got {shapes}")
    problem = bind(A, u, activation, certified=True)
    z, v = (jnp.asarray(a, problem.u.dtype).reshape(problem.u.shape) for a in (z, v))
    settings = core.Implicit(tol, max_steps).linear
    return unflatten(solve_adjoint_with(settings, problem, z, v), problem, u)


def differentiable(problem: NEMONProblem, solver, adjoint, tol, max_steps) -> Solution:
    """`fixed_point` for a problem that is at hand, on its rows."""
    solver, max_steps = resolve(solver, max_steps)
    return core.fixed_point(problem, solver, adjoint, tol=tol, max_steps=max_steps)


def check_options(
    A: Array | AbstractMatrix, activation, solver, adjoint, tol, max_steps
) -> tuple[float | None, int | None]:
    """(tol, max_steps) as Python numbers; checks what can be checked without a u.

    Args:
        A: a matrix of the kind that is meant, of any size and values.

    Raises:
        ValueError: an option that `fixed_point` would refuse whatever u is.
    """
    matrix = as_matrix(A)
    u, eta = jnp.zeros(matrix.event, jnp.float32), jnp.ones(matrix.event[-1])
    problem = bind(matrix, u, activation, eta, certified=True)
    chosen, steps = resolve(solver, max_steps)
    settings = settings_for(chosen, problem, tol, steps, trace=False)
    resolved_adjoint(adjoint).check(settings)
    return check_tol(tol), check_steps("max_steps", max_steps)


def resolve(
    solver: AbstractSolver | str, max_steps: int | None
) -> tuple[AbstractSolver, int]:
    """(the solver, the most steps) that the options stand for.

    Raises:
        ValueError: an unknown solver.
    """
    chosen = Newton() if isinstance(solver, str) and solver == "auto" else solver
    check_solver(chosen, OR_AUTO)
    steps = MAX_STEPS if max_steps is None else max_steps
    return cast(AbstractSolver, chosen), steps


def unflatten(solution: Solution, problem: NEMONProblem, u) -> Solution:
    """A solution on rows, in the shape and dtype of u."""
    u = jnp.asarray(u)
    batch = u.shape[: u.ndim - len(problem.A.event)]
    code, stats = jax.tree.map(
        lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]),
        (solution.result, solution.stats),
    )
    return Solution(solution.value.reshape(u.shape).astype(u.dtype), code, stats)


def most_steps(
    A: Float[Array, "n n"] | AbstractMatrix,
    u: Float[Array, "... n"],
    activation: Callable[[Array], Array] = jax.nn.relu,
    eta: Float[Array, "n"] | None = None,
    *,
    gamma: float = 0.0,
    tol: float | None = None,
) -> Int[Array, "..."]:
    """How many steps the average iteration, `Picard()`, takes at most, for each row.

    The residual shrinks by c = 1 - a (1 - max(gamma, 0)) a step in |.|_eta, so from r
    it is within the threshold t after log(max(eta) |r|_eta / t) / log(1 / c) steps.

    Args:
        gamma: a bound on mu(A) in the norm weighted by eta, below 1. Others as in
            `solve`.

    Raises:
        ValueError: as `solve`; gamma is not below 1.
    """
    check_gamma(gamma)
    problem = bind(A, u, activation, eta)
    tol = Picard().tolerance_for(problem.u.dtype) if tol is None else tol
    size = problem.size(problem.residual(problem.start())) * problem.eta.max()
    c = 1 - average_step(problem.A) * (1 - jnp.maximum(gamma, 0))
    steps = jnp.log(size / problem.tolerance(tol)) / -jnp.log(c)
    batch = jnp.shape(u)[: jnp.ndim(u) - len(problem.A.event)]
    return jnp.ceil(jnp.maximum(steps, 0)).astype(jnp.int32).reshape(batch)
