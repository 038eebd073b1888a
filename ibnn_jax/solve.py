"""The two entry points: `solve` returns a Solution, `implicit_bias` the differentiable z."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ibnn_jax.adjoint import (
    Adjoint,
    Implicit,
    Phantom,
    Unrolled,
    adjoint_tol,
    solve_adjoint_groups,
)
from ibnn_jax.couplings import Coupling
from ibnn_jax.iterate import Solver, iterate
from ibnn_jax.linear import conjugate_gradient
from ibnn_jax.problem import Problem, bind, default_tol, in_blocks, merge_vmap
from ibnn_jax.solution import Solution, Stats
from ibnn_jax.solvers.meanfield import MeanField
from ibnn_jax.solvers.newton import Newton

MAX_STEPS = 500
SMALL_GROUP = 128  # up to here pairwise solutions, exact to rounding, cost at most six times what MeanField would


def solve(
    y: Float[Array, "..."],
    lam,
    p,
    coupling: Coupling,
    *,
    solver: Solver | str = "auto",
    tol: float | None = None,
    max_steps: int | None = None,
    trace: bool = False,
    strict: bool = False,
) -> Solution:
    """Solve z_i = y_i - lam sum_k w_ik sigma(p (z_k - z_i)) in every coupled group of y (paper Eq. 4).

    Args:
        y: input of any shape, float32 or float64 (half precision is solved in float32 and returned in its own dtype).
        lam, p: scalars or arrays that broadcast against y with size 1 on the coupled axes; p > 0.
        coupling: `Uniform`, `Window` or `Dense`.
        solver: solver options, e.g. `Newton()`; "auto" is `MeanField()` for Uniform groups of more than 128
            neurons with a smooth sigma, and `Newton()` otherwise.
        tol: a group has converged when max|r| <= tol (1 + max|y| + |lam|), with r = y - lam B(z) - z the residual;
            None takes 1e-6 in float32, 1e-11 in float64 (MeanField: its `default_tol`, and a stricter rule); never below 4 eps.
        max_steps: most solver steps, 500 when None.
        trace: also return the residual after every step (exact couplings only).
        strict: for debugging outside jit: raise FloatingPointError if any group did not converge.

    Returns:
        Solution(value, result, stats): z with the shape and dtype of y; `Result` codes and `Stats` per group, with the
        shape of y without its coupled axes. Nothing raises inside jit: look at `result`.
        Not differentiable: use `implicit_bias`.

    Raises:
        ValueError: see `bind`; unknown solver, tol or max_steps not positive.
    """
    problem, layout = bind(y, lam, p, coupling)
    solution = _solved(_options(problem, solver, tol, max_steps), trace, problem)
    solution = _restore(solution, layout, jnp.asarray(y).dtype)
    if strict and not bool(solution.stats.converged.all()):
        failed = int((~solution.stats.converged).sum())
        raise FloatingPointError(
            f"{failed} of {solution.stats.converged.size} groups did not converge; largest residual "
            f"{float(jnp.nanmax(solution.stats.residual)):.3g}. Raise max_steps or tol, or look at result for NaN in y"
        )
    return solution


def implicit_bias(
    y: Float[Array, "..."],
    lam,
    p,
    coupling: Coupling,
    *,
    solver: Solver | str = "auto",
    adjoint: Adjoint | None = None,
    tol: float | None = None,
    max_steps: int | None = None,
    has_stats: bool = False,
):
    """The solution z of Eq. (4), differentiable in y, lam, p and a Dense w. Arguments as in `solve`.

    Args:
        adjoint: `Implicit()` (default), `Unrolled()` or `Phantom(k)`.
        has_stats: return (z, Stats) instead of z.

    Raises:
        ValueError: as `solve`; an adjoint that does not fit the solver.
    """
    adjoint = Implicit() if adjoint is None else adjoint
    if not isinstance(adjoint, Adjoint):
        raise ValueError(
            f"adjoint must be Implicit(), Unrolled() or Phantom(k); got {adjoint!r}"
        )
    problem, layout = bind(y, lam, p, coupling)
    exact = isinstance(adjoint, Unrolled) or (
        isinstance(adjoint, Implicit) and adjoint.any_order
    )
    if exact and solver == "auto":
        solver = Newton()
    options = _options(problem, solver, tol, max_steps)
    if exact and isinstance(options[0], MeanField):
        raise ValueError(
            f"{adjoint} differentiates the exact equation; MeanField does not step on it. Use solver=Newton()"
        )
    z, stats = _differentiable(options, adjoint, problem)
    solution = _restore(Solution(z, stats.steps, stats), layout, jnp.asarray(y).dtype)
    return (solution.value, solution.stats) if has_stats else solution.value


def solve_adjoint(
    z, v, lam, p, coupling: Coupling, *, tol: float | None = None, max_steps: int = 500
) -> Solution:
    """u with (I + lam DB(z)) u = v, the adjoint system at a solution z (paper Eq. 28), on the exact operator.

    Args:
        z, v: the solution and the cotangent, same shape. lam, p, coupling: as in `solve`.
        tol: max|v - H u| <= tol max|v|; None takes 1e-6 in float32, 1e-11 in float64.

    Returns:
        Solution: u in `value`; `stats.residual` is the true max|v - H u| per group.

    Raises:
        ValueError: as `solve`; shapes of z and v differ.
    """
    if jnp.shape(z) != jnp.shape(v):
        raise ValueError(
            f"z and v must have one shape; got {jnp.shape(z)} and {jnp.shape(v)}"
        )
    problem, layout = bind(z, lam, p, coupling)
    cotangent = layout.to_groups(jnp.asarray(v, problem.y.dtype))
    found = _adjoint_solved(Implicit(tol, max_steps), problem, cotangent)
    return _restore(found, layout, jnp.asarray(z).dtype)


def energy(z, y, lam, p, coupling: Coupling) -> Float[Array, "*groups"]:
    """E(z; y) = 1/2 |z - y|^2 - lam/2 sum_ik w_ik S_p(z_k - z_i), one value per coupled group (paper Eq. 5).

    Raises:
        ValueError: as `solve`; shapes of z and y differ.
    """
    if jnp.shape(z) != jnp.shape(y):
        raise ValueError(
            f"z and y must have one shape; got {jnp.shape(z)} and {jnp.shape(y)}"
        )
    problem, layout = bind(y, lam, p, coupling)
    return layout.per_group(
        problem.energy(layout.to_groups(jnp.asarray(z, problem.y.dtype)))
    )


def one_step(y, lam, p, coupling: Coupling, *, has_stats: bool = False):
    """z = y - lam B(y), one explicit step in place of the solution: the "lite" layer of the authors' code."""
    problem, layout = bind(y, lam, p, coupling)
    z = problem.y + problem.residual(problem.y)
    if not has_stats:
        return layout.from_groups(z).astype(jnp.asarray(y).dtype)
    residual = jnp.abs(jax.lax.stop_gradient(problem.residual(z))).max(-1)
    stats = Stats(
        jnp.ones(len(z), jnp.int32),
        residual,
        residual <= problem.tolerance(default_tol(z.dtype)),
    )
    solution = _restore(Solution(z, stats.steps, stats), layout, jnp.asarray(y).dtype)
    return solution.value, solution.stats


def _options(problem: Problem, solver, tol, max_steps):
    """(solver, tol, max_steps), resolved and checked; hashable, so that custom_vjp can carry it."""
    if solver == "auto":
        many = problem.y.shape[1] > SMALL_GROUP
        solver = MeanField() if many and MeanField.fits(problem.op) else Newton()
    if not isinstance(solver, Solver | MeanField):
        raise ValueError(
            f'unknown solver {solver!r}; use "auto" or options such as ibnn_jax.Newton(), Anderson(), Picard(), '
            "GradientDescent(), Broyden() or MeanField()"
        )
    if isinstance(solver, MeanField) and not MeanField.fits(problem.op):
        raise ValueError(
            "MeanField solves Uniform couplings with a smooth sigma only; use solver=Newton()"
        )
    if tol is not None and not tol > 0:
        raise ValueError(f"tol must be positive; got {tol}")
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps must be at least 1; got {max_steps}")
    if tol is None:
        tol = (
            solver.default_tol
            if isinstance(solver, MeanField)
            else default_tol(problem.y.dtype)
        )
    return solver, tol, max_steps or MAX_STEPS


# Compiled here, so that calls outside jit too are compiled once for each shape and each choice of options: a loop's body is a
# new function in every call, for which JAX would compile it again.


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
@partial(jax.jit, static_argnums=(0, 1))
def _solved(options, trace, problem):
    with jax.default_matmul_precision("highest"):
        return _forward(options, problem, trace)[0]


def _no_derivative(*_):
    raise TypeError(
        "ibnn_jax.solve is not differentiable; use ibnn_jax.implicit_bias, which returns the same z"
    )


_solved.defvjp(
    lambda options, trace, problem: (_solved(options, trace, problem), None),
    _no_derivative,
)


@partial(jax.jit, static_argnums=(0, 1))
def _differentiable(options, adjoint, problem):
    """(z, Stats) on groups, with the derivative that `adjoint` names."""
    with jax.default_matmul_precision("highest"):
        if isinstance(adjoint, Unrolled):
            length = options[2] if adjoint.max_steps is None else adjoint.max_steps
            z, _, stats = iterate(
                options[0], problem, tol=options[1], max_steps=length, unrolled=True
            )
            return z, stats
        if isinstance(adjoint, Phantom):
            z, _, stats = jax.lax.stop_gradient(
                _forward(options, jax.lax.stop_gradient(problem), False)[0]
            )
            for _ in range(adjoint.k):
                z = z + adjoint.damping * problem.residual(z)
            return z, stats
        return (
            _any_order(options, adjoint, problem)
            if adjoint.any_order
            else _implicit(options, adjoint, problem)
        )


@partial(jax.jit, static_argnums=0)
def _adjoint_solved(options, problem, v):
    with jax.default_matmul_precision("highest"):
        return solve_adjoint_groups(problem, problem.y, v, options)


def _forward(options, problem, trace):
    """(Solution, what the solver's own adjoint wants to keep)."""
    solver, tol, max_steps = options
    if isinstance(solver, MeanField):
        if trace:
            raise ValueError(
                "trace shows the steps of an exact solver; MeanField has none on y. Use solver=Newton()"
            )
        return merge_vmap(
            in_blocks(lambda problem: solver.solve(problem, tol, max_steps))
        )(problem)
    found = lambda problem: iterate(
        solver, problem, tol=tol, max_steps=max_steps, trace=trace
    )
    return merge_vmap(in_blocks(found, pairs=True))(problem), None


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _implicit(options, adjoint: Implicit, problem: Problem):
    solution, _ = _forward(options, problem, False)
    return solution.value, solution.stats


def _implicit_fwd(options, adjoint, problem):
    solution, kept = _forward(options, problem, False)
    return (solution.value, solution.stats), (problem, solution.value, kept)


def _implicit_bwd(options, adjoint, saved, cotangents):
    problem, z, kept = saved
    v = cotangents[0]
    if kept is not None:
        pullback = merge_vmap(
            in_blocks(
                lambda problem, kept, v: options[0].pullback(problem, kept, v, adjoint)
            )
        )
        return (pullback(problem, kept, v),)
    pullback = in_blocks(
        lambda problem, z, v: solve_adjoint_groups(problem, z, v, adjoint).value,
        pairs=True,
    )
    u = merge_vmap(pullback)(problem, z, v)
    return jax.vjp(jax.checkpoint(lambda problem: problem.residual(z)), problem)[1](u)


_implicit.defvjp(_implicit_fwd, _implicit_bwd)


def _any_order(options, adjoint, problem):
    """The same z by `jax.lax.custom_root`, whose derivatives are linear solves that can be differentiated again."""

    def solve_root(_, start):
        solution, _ = _forward(options, jax.lax.stop_gradient(problem), False)
        # custom_root wants tangents of one dtype with its auxiliary output, which integers lack.
        return solution.value, jax.tree.map(
            lambda a: a.astype(start.dtype), solution.stats
        )

    def solve_linear(hessian, v):
        def cg(matvec, b):
            tol = adjoint_tol(adjoint, b.dtype) * jnp.abs(b).max(-1)
            return conjugate_gradient(
                matvec,
                b,
                jnp.ones_like(b),
                tol=tol,
                max_steps=adjoint.max_steps,
                active=jnp.isfinite(tol),
            ).x

        return jax.lax.custom_linear_solve(hessian, v, cg, symmetric=True)

    z, (steps, residual, converged, _) = jax.lax.custom_root(
        lambda z: -problem.residual(z),
        jax.lax.stop_gradient(problem.y),
        solve_root,
        solve_linear,
        has_aux=True,
    )
    steps, converged = jax.lax.stop_gradient((steps.astype(jnp.int32), converged > 0))
    return z, Stats(steps, jax.lax.stop_gradient(residual), converged)


def _restore(solution: Solution, layout, dtype) -> Solution:
    value = layout.from_groups(solution.value).astype(dtype)
    return Solution(
        value,
        layout.per_group(solution.result),
        jax.tree.map(layout.per_group, solution.stats),
    )
