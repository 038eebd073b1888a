"""The only solver loop: it counts, stops, freezes finished groups, finds NaN."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from ibnn_jax.core.batching import select
from ibnn_jax.core.problem import AbstractProblem
from ibnn_jax.core.solution import Result, Solution, Stats

if TYPE_CHECKING:
    from ibnn_jax.core.solver import IterativeSolver, SolveSettings


class Simple(NamedTuple):
    """The state of a solver without memory: z and r = r(z)."""

    z: Float[Array, "G n"]
    r: Float[Array, "G n"]


class Run(NamedTuple):
    """How far the loop came."""

    z: Float[Array, "G n"]
    residual: Float[Array, "G"]  # max_i |r_i| at z
    steps: Int[Array, "G"]
    trace: Float[Array, "G steps"] | None


class _Carry(NamedTuple):
    step: Int[Array, ""]  # of the loop
    state: Any  # of the solver
    norm: Float[Array, "G"]  # max_i |r_i|
    best: Float[Array, "G"]  # the least size of r so far
    since: Int[Array, "G"]  # how many steps ago that was
    steps: Int[Array, "G"]  # taken while the group was active
    active: Bool[Array, "G"]
    trace: Float[Array, "G steps"] | None


def iterate(
    solver: "IterativeSolver",
    problem: AbstractProblem,
    settings: "SolveSettings",
    start: Float[Array, "G n"] | None = None,
    *,
    unrolled: bool = False,
) -> tuple[Solution, Float[Array, "G n"]]:
    """Run a solver until every group meets its tolerance, fails, or makes no progress.

    A group with NaN or infinity in its inputs is set aside at once and gets NaN back;
    the others do not notice. With unrolled=True the loop is a scan of exactly
    max_steps steps, through which reverse mode differentiates.

    Returns:
        The Solution, and its value before the shift of `problem.centred` was added,
        which rounds it.
    """
    problem, valid = problem.sanitised()
    threshold = problem.tolerance(settings.tol)
    centred, shift = problem.centred()
    if start is None:
        start = centred.start()
    else:
        start = select(valid, start - shift, centred.start())
    ran = run(
        solver,
        centred,
        start,
        threshold,
        settings.max_steps,
        trace=settings.trace,
        unrolled=unrolled,
    )
    threshold = jnp.maximum(threshold, centred.rounding(ran.z))
    value = ran.z + shift
    lost = jnp.abs(jax.lax.stop_gradient(value - shift - ran.z)).max(-1)
    resolved = problem.resolves(lost, settings.tol)
    solution = package(problem, valid, ran._replace(z=value), threshold, resolved)
    return solution, jnp.where(jnp.isfinite(solution.value), ran.z, jnp.nan)


def run(
    solver: "IterativeSolver",
    problem: AbstractProblem,
    start: Float[Array, "G n"],
    threshold: Float[Array, "G"],
    max_steps: int,
    *,
    trace: bool = False,
    unrolled: bool = False,
) -> Run:
    """The loop of `iterate`, for a problem around 0 without NaN or infinity.

    A group stops where `solver.patience` steps in a row bring no new least size of r,
    in the problem's norm, as where rounding forbids the tolerance. Past the uniqueness
    bound it has twenty times as many: a descent may pass by a saddle, where r is small
    for long.
    """

    def unmet(norm, z):
        limit = jnp.maximum(threshold, jax.lax.stop_gradient(problem.rounding(z)))
        return norm > limit

    def size_of(state):
        return problem.size(jax.lax.stop_gradient(state.r))

    state = solver.init(problem, start)
    norm = _norm(state)
    history = None
    if trace:
        rows = jnp.broadcast_to(norm[:, None], (norm.shape[0], max_steps + 1))
        history = jnp.zeros_like(rows).at[:, 0].set(norm)
    most, longer = jnp.int32(solver.patience), jnp.int32(20 * solver.patience)
    patience = jnp.where(problem.unique, most, longer)
    none = jnp.zeros_like(norm, dtype=jnp.int32)
    carry = _Carry(
        step=jnp.int32(0),
        state=state,
        norm=norm,
        best=size_of(state),
        since=none,
        steps=none,
        active=unmet(norm, state.z),
        trace=history,
    )

    def body(carry):
        new = solver.step(problem, carry.state, carry.active, unrolled)
        state = select(carry.active, new, carry.state)
        norm = _norm(state)
        history = carry.trace
        if history is not None:
            history = history.at[:, carry.step + 1].set(norm)
        # A NaN residual is above no threshold: such a group leaves the loop too.
        active = carry.active & unmet(norm, state.z)
        size = size_of(state)
        since = jnp.where(size < carry.best, 0, carry.since + 1)
        active &= since < patience
        best = jnp.minimum(size, carry.best)
        steps = carry.steps + carry.active.astype(jnp.int32)
        return _Carry(
            step=carry.step + 1,
            state=state,
            norm=norm,
            best=best,
            since=since,
            steps=steps,
            active=active,
            trace=history,
        )

    def unfinished(carry):
        # A sum, because Pallas kernels, in which this loop also runs, have no any().
        return (carry.step < max_steps) & (carry.active.sum() > 0)

    if unrolled:
        carry, _ = jax.lax.scan(lambda c, _: (body(c), None), carry, length=max_steps)
    else:
        carry = jax.lax.while_loop(unfinished, body, carry)
    history = carry.trace
    if history is not None:  # an early exit leaves the tail unwritten
        written = jnp.arange(max_steps + 1) <= carry.step
        history = jnp.where(written, history, carry.norm[:, None])
    return Run(carry.state.z, carry.norm, carry.steps, history)


def package(
    problem: AbstractProblem,
    valid: Bool[Array, "G"],
    ran: Run,
    threshold: Float[Array, "G"],
    resolved: Bool[Array, "G"] | bool = True,
) -> Solution:
    """Name the outcome of each group; z and residual are NaN where it is not finite.

    Args:
        resolved: whether the numbers of z are fine enough to hold the solution.
    """
    finite = valid & jnp.isfinite(ran.residual)
    converged = finite & (ran.residual <= threshold) & resolved
    code = jnp.where(problem.unique, Result.CONVERGED, Result.CONVERGED_NOT_UNIQUE)
    missed = jnp.where(finite, Result.MAX_STEPS, Result.NONFINITE)
    code = jnp.where(converged, code, missed).astype(jnp.int32)
    z = jnp.where(finite[:, None], ran.z, jnp.nan)
    residual = jnp.where(finite, ran.residual, jnp.nan)
    return Solution(z, code, Stats(ran.steps, residual, converged, ran.trace))


def _norm(state) -> Float[Array, "G"]:
    return jnp.abs(jax.lax.stop_gradient(state.r)).max(-1)
