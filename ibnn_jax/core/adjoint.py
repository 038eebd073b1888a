"""How a solution is differentiated: `Implicit`, `Unrolled` (through the steps) or
`Phantom` (through a few of them).

At a solution r(z; theta) = 0, so dz/dtheta = H^-1 dr/dtheta with H = -Dr(z). The
cotangent v of z therefore needs one linear solve, H^T u = v, and then

    dL/dtheta = u . dr/dtheta

`core.linear_solve.solve_adjoint` solves it, in the `pullback` of a solver.

For implicit bias H = I + lam DB(z) is symmetric (paper Eqs. 27, 28), and dL/dy = u,
dL/dlam = -u . B(z), dL/dp = -lam u . dB/dp, likewise for w.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ibnn_jax.core.batching import full_precision
from ibnn_jax.core.iterate import iterate
from ibnn_jax.core.linear_solve import LinearSettings, linear_solve
from ibnn_jax.core.options import (
    check_between,
    check_count,
    check_flag,
    check_steps,
    settle,
)
from ibnn_jax.core.problem import AbstractProblem, Linearisation
from ibnn_jax.core.solution import Solution, Stats
from ibnn_jax.core.solver import IterativeSolver, SolveSettings


class AbstractAdjoint(ABC):
    """How a solve is differentiated, as a frozen dataclass of options."""

    # It differentiates r, or the steps, themselves: the solver must step on z.
    needs_exact_solver: bool = False

    @abstractmethod
    def apply(
        self, settings: SolveSettings, problem: AbstractProblem, start=None
    ) -> Solution:
        """The Solution on groups; its value is differentiable in the problem."""

    def check(self, settings: SolveSettings) -> None:
        """Raise ValueError where the solver does not fit."""
        if self.needs_exact_solver and not settings.solver.exact:
            raise ValueError(
                f"{self} differentiates the exact equation; "
                f"{type(settings.solver).__name__} does not step on it. "
                "Use solver=Newton()"
            )


@dataclass(frozen=True)
class Implicit(AbstractAdjoint):
    """Implicit differentiation: exact at the solution, memory independent of the steps.

    A group whose adjoint system could not be solved (its residual stays above
    `max_relative_residual` * max|v|) gets NaN gradients; one whose z is NaN likewise.
    That of a group that ended as MAX_STEPS belongs to the z returned, and is as wrong
    as that z is; MeanField makes it NaN in groups too large for pairwise solves.

    Args:
        tol: relative residual of the adjoint solve, max|v - H^T u| <= tol max|v|; None
            takes 1e-6 in float32 and 1e-11 in float64.
        max_steps: most steps of the linear solver.
        max_relative_residual: relative residual past which the gradient is declared
            lost; 1 or more never gives up on a finite one.
        any_order: also allow forward mode (`jax.jvp`, `jax.jacfwd`) and higher
            derivatives, through `jax.lax.custom_root` on the exact equation; slower,
            and the path for Hessians.

    Raises:
        ValueError: an option that is no number of its kind.
    """

    tol: float | None = None
    max_steps: int = 500
    max_relative_residual: float = 1e-2
    any_order: bool = False

    def __post_init__(self):
        # `linear` checks its three, and makes Python numbers of them.
        any_order = check_flag("any_order", self.any_order)
        settle(self, any_order=any_order, **asdict(self.linear))

    @property
    def needs_exact_solver(self) -> bool:  # type: ignore[override]
        return self.any_order

    @property
    def linear(self) -> LinearSettings:
        """How the adjoint system is solved."""
        return LinearSettings(self.tol, self.max_steps, self.max_relative_residual)

    def apply(self, settings, problem, start=None):
        if self.any_order:
            return _any_order(settings, self, problem, start)
        return _implicit(settings, self, problem, start)


@dataclass(frozen=True)
class Unrolled(AbstractAdjoint):
    """Differentiate through the solver's steps: a scan of exactly `max_steps` of them.

    Every order and mode of derivative works, at memory O(max_steps). For checks and
    comparisons; needs a solver that steps on all n unknowns (any but MeanField;
    "auto" is Newton here).

    Args:
        max_steps: the length of the scan; None takes that of the solve.

    Raises:
        ValueError: max_steps is not a whole number of at least 1.
    """

    max_steps: int | None = 20
    needs_exact_solver = True

    def __post_init__(self):
        settle(self, max_steps=check_steps("Unrolled: max_steps", self.max_steps))

    def check(self, settings):
        super().check(settings)
        if not isinstance(settings.solver, IterativeSolver):
            raise ValueError(
                f"{self} differentiates the steps of an IterativeSolver; "
                f"{type(settings.solver).__name__} is none. Use solver=Newton()"
            )

    def apply(self, settings, problem, start=None):
        steps = settings.max_steps if self.max_steps is None else self.max_steps
        solver = cast(IterativeSolver, settings.solver)  # `check` sees to it
        settings = SolveSettings(solver, settings.tol, steps)
        return iterate(solver, problem, settings, start, unrolled=True)[0]


@dataclass(frozen=True)
class Phantom(AbstractAdjoint):
    """Differentiate only k damped Picard steps taken from the solution.

    The adjoint H^-1 is replaced by the first k terms of its Neumann series,
    damping * sum_j (I - damping H)^j, which approaches it as k grows where damping * H
    has its spectrum in (0, 2). k = 1, damping = 1 is Jacobian-free backpropagation.

    The value is the solution itself, whose statistics it has.

    Args:
        k: how many steps are differentiated.
        damping: the share of a Picard step that each of them takes, in (0, 1].

    References: Fung et al., JFB (2022); Geng et al., On training implicit models
    (2021).

    Raises:
        ValueError: k < 1, or damping outside (0, 1].
    """

    k: int = 1
    damping: float = 1.0

    def __post_init__(self):
        damping = check_between("Phantom: damping", self.damping, 0, 1, closed=True)
        settle(self, k=check_count("Phantom: k", self.k), damping=damping)

    def apply(self, settings, problem, start=None):
        fixed = jax.lax.stop_gradient((problem, start))
        solution, _ = settings.solver.solve(fixed[0], settings, fixed[1])
        solution = jax.lax.stop_gradient(solution)
        z = solution.value
        for _ in range(self.k):
            z = z + self.damping * problem.residual(z)
        # Where lam is far from 0 the steps leave the solution.
        return solution._replace(value=_with_derivative_of(z, solution.value))


@jax.custom_jvp
def _with_derivative_of(z, value):
    """`value`, with the tangent of z."""
    return value


_with_derivative_of.defjvp(lambda primals, tangents: (primals[1], tangents[0]))


@full_precision
def _solved(settings, problem, start):
    """What the solver returns, traced once.

    JAX traces `_implicit` and then its rule. The second time jit takes the first trace,
    provided that the mesh in use is the same. No mesh and an empty one count as two,
    and JAX sets the latter for a rule, so it is set for both.
    """
    with jax.sharding.use_abstract_mesh(jax.sharding.get_abstract_mesh()):
        return _traced(settings, problem, start)


@partial(jax.jit, static_argnums=0)
def _traced(settings, problem, start):
    return settings.solver.solve(problem, settings, start)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _implicit(settings, adjoint, problem, start):
    return _solved(settings, problem, start)[0]


def _implicit_fwd(settings, adjoint, problem, start):
    solution, residuals = _forward(settings, problem, start)
    return solution, (problem, start, residuals)


@full_precision
def _implicit_bwd(settings, adjoint, saved, cotangent: Solution):
    problem, start, residuals = saved
    v: Float[Array, "G n"] = cotangent.value
    gradient = _pullback(settings.solver, adjoint, problem, residuals, v)
    return gradient, jax.tree.map(jnp.zeros_like, start)


# What the two rules compute is not to be differentiated again.


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _forward(settings, problem, start):
    return _solved(settings, problem, start)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _pullback(solver, adjoint, problem, residuals, v):
    return solver.pullback(problem, residuals, v, adjoint)


def _no_second_derivative(*_):
    raise TypeError(
        "the default adjoint is differentiable once, in reverse mode; for jax.hessian, "
        "a gradient of a gradient or forward mode give an exact solver and "
        "adjoint=Implicit(any_order=True), e.g. implicit_bias(..., solver=Newton(), "
        "adjoint=Implicit(any_order=True))"
    )


_forward.defjvp(_no_second_derivative)
_pullback.defjvp(_no_second_derivative)
_implicit.defvjp(_implicit_fwd, _implicit_bwd)


def _any_order(settings, adjoint, problem, start):
    """By `jax.lax.custom_root`, whose derivatives can be differentiated again."""
    centred, shift = problem.centred()

    def solve_root(_, guess):
        fixed = jax.lax.stop_gradient((problem, start))
        solution, _ = settings.solver.solve(fixed[0], settings, fixed[1])
        # custom_root wants tangents for its auxiliary output, which integers lack.
        aux = jax.tree.map(lambda a: a.astype(guess.dtype), solution[1:])
        return solution.value - shift, aux

    def solve_tangent(hessian, v):
        solve = partial(_unpreconditioned, adjoint.linear, problem.symmetric)
        return jax.lax.custom_linear_solve(
            hessian, v, solve, solve, symmetric=problem.symmetric
        )

    guess = jax.lax.stop_gradient(centred.start())
    z, (code, stats) = jax.lax.custom_root(
        lambda z: -centred.residual(z), guess, solve_root, solve_tangent, has_aux=True
    )
    code, stats = jax.lax.stop_gradient((code, stats))
    stats = Stats(
        stats.steps.astype(jnp.int32), stats.residual, stats.converged > 0, stats.trace
    )
    return Solution(z + shift, code.astype(jnp.int32), stats)


def _unpreconditioned(settings: LinearSettings, symmetric: bool, matvec, b):
    """x with matvec(x) = b, where nothing else is known of the matrix; NaN if lost."""
    size = jnp.abs(b).max(-1)
    h = Linearisation(matvec, matvec, jnp.ones_like(b), symmetric=symmetric)
    x = linear_solve(
        h,
        b,
        tol=settings.tolerance(b.dtype) * size,
        max_steps=settings.max_steps,
        active=jnp.isfinite(size),
    ).x
    # NaN in the matrix, as from a z that is NaN, makes this NaN.
    missed = jnp.abs(b - matvec(x)).max(-1)
    lost = ~(missed <= settings.max_relative_residual * size)
    return jnp.where(lost[:, None], jnp.nan, x)
