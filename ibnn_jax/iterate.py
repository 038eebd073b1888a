"""The only solver loop: it counts, stops, freezes finished groups and notices non-finite values."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ibnn_jax.problem import Problem
from ibnn_jax.solution import Result, Solution, Stats

State = Any  # a pytree with the fields z and r (the residual at z), every leaf led by the group axis G


class Solver(ABC):
    """An algorithm for z = y - lam B(z). It only steps; `iterate` owns the loop."""

    @abstractmethod
    def init(self, problem: Problem, z: Float[Array, "G n"]) -> State:
        """The state at the start z, its residual evaluated."""

    @abstractmethod
    def step(
        self, problem: Problem, state: State, active: Bool[Array, "G"], unrolled: bool
    ) -> State:
        """One step. Groups not active may return anything: the loop discards it.

        unrolled: True when reverse-mode differentiation runs through the step, so no while_loop on differentiated values.
        """


class Simple(NamedTuple):
    """The state of a solver without memory."""

    z: Float[Array, "G n"]
    r: Float[Array, "G n"]


def collapsed_start(problem: Problem) -> Float[Array, "G n"]:
    """Where to start: m + (y - m) / (1 - lam p) for lam <= 0, with m what each neuron sees on average; y for lam > 0.

    The first is the solution of the linearised equation under uniform coupling; undamped Newton from it needs a
    handful of steps where it fails from y. It is shifted to the mean of y, which a solution has because w is symmetric
    (sum_i B_i = 0); steps along the residual keep it there. For lam > 0 the iterates descend from y (|z - y| <= lam).
    """
    mean = problem.op.average(problem.y)
    shrunk = mean + (problem.y - mean) / (1 - jnp.minimum(problem.lam, 0) * problem.p)
    weight = jnp.broadcast_to(
        jnp.asarray(problem.op.weight, shrunk.dtype), shrunk.shape
    )
    shrunk += (weight * (problem.y - shrunk)).sum(-1, keepdims=True) / weight.sum(
        -1, keepdims=True
    )
    return jnp.where(problem.lam <= 0, shrunk, problem.y)


def select(mask: Bool[Array, "G"], new, old):
    """Per group, new where mask and old elsewhere; by jnp.where, so that NaN cannot leak from the one not taken."""
    return jax.tree.map(
        lambda a, b: jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old
    )


class Run(NamedTuple):
    """How far a loop came."""

    z: Float[Array, "G n"]
    residual: Float[Array, "G"]
    steps: Array
    trace: Array | None


class _Carry(NamedTuple):
    step: Array
    state: State
    norm: Float[Array, "G"]
    steps: Array
    active: Bool[Array, "G"]
    trace: Array | None


def iterate(
    solver: Solver,
    problem: Problem,
    start: Float[Array, "G n"] | None = None,
    *,
    tol: float,
    max_steps: int,
    trace: bool = False,
    unrolled: bool = False,
) -> Solution:
    """Run a solver until every group meets `problem.tolerance(tol)`, fails, or max_steps is reached.

    A group with a NaN or infinity in y, lam or p is set aside at once and gets NaN back; the others do not notice.
    With unrolled=True the loop is a scan of exactly max_steps steps, through which reverse mode differentiates.
    """
    problem, valid = problem.sanitised()
    threshold = problem.tolerance(tol)
    centred, centre = problem.centred()
    start = (
        collapsed_start(centred)
        if start is None
        else select(valid, start, problem.y) - centre
    )
    found = run(
        solver, centred, start, threshold, max_steps, trace=trace, unrolled=unrolled
    )
    return package(
        problem,
        valid,
        found.z + centre,
        found.residual,
        found.residual <= threshold,
        found.steps,
        found.trace,
    )


def run(
    solver: Solver,
    problem: Problem,
    start,
    threshold: Float[Array, "G"],
    max_steps: int,
    *,
    trace=False,
    unrolled=False,
) -> Run:
    """The loop of `iterate`, for a problem around 0 without NaN or infinity."""
    state = solver.init(problem, start)

    def norm_of(state):
        return jnp.abs(jax.lax.stop_gradient(state.r)).max(-1)

    norm = norm_of(state)
    history = (
        jnp.zeros((len(norm), max_steps + 1), norm.dtype).at[:, 0].set(norm)
        if trace
        else None
    )
    carry = _Carry(
        jnp.int32(0),
        state,
        norm,
        jnp.zeros(len(norm), jnp.int32),
        norm > threshold,
        history,
    )

    def body(carry):
        state = select(
            carry.active,
            solver.step(problem, carry.state, carry.active, unrolled),
            carry.state,
        )
        norm = norm_of(state)
        history = (
            None if carry.trace is None else carry.trace.at[:, carry.step + 1].set(norm)
        )
        # Not "norm > threshold": a NaN residual must leave the loop too, and be found by `package`.
        active = carry.active & (norm > threshold)
        return _Carry(
            carry.step + 1, state, norm, carry.steps + carry.active, active, history
        )

    if unrolled:
        carry = jax.lax.scan(lambda c, _: (body(c), None), carry, length=max_steps)[0]
    else:
        carry = jax.lax.while_loop(
            lambda c: (c.step < max_steps) & (c.active.sum() > 0), body, carry
        )

    history = carry.trace
    if (
        history is not None
    ):  # an early exit leaves the tail unwritten: repeat the last value
        history = jnp.where(
            jnp.arange(max_steps + 1) <= carry.step, history, carry.norm[:, None]
        )
    return Run(carry.state.z, carry.norm, carry.steps, history)


def package(problem: Problem, valid, z, residual, met, steps, trace=None) -> Solution:
    """Name the outcome of each group; NaN in z and residual where it is not finite."""
    finite = valid & jnp.isfinite(residual)
    converged = finite & met
    code = jnp.where(problem.unique, Result.CONVERGED, Result.CONVERGED_NOT_UNIQUE)
    code = jnp.where(
        converged, code, jnp.where(finite, Result.MAX_STEPS, Result.NONFINITE)
    )
    z, residual = (
        jnp.where(finite[:, None], z, jnp.nan),
        jnp.where(finite, residual, jnp.nan),
    )
    return Solution(z, code.astype(jnp.int32), Stats(steps, residual, converged, trace))


def run_where(mask: Bool[Array, "G"], f, x, *operands, side: int):
    """x with f(x, *operands) in the groups of `mask`, for an f that few groups need and that costs much.

    f makes matrices of side^2 numbers per group. It takes as many groups at a time as keep these in a CPU's cache, those of the
    mask only, so it never runs when there are none. Every leaf of x and of the operands is led by groups.
    """
    groups = len(mask)
    chunk = max(
        1,
        min(
            groups,
            (150_000 if jax.default_backend() == "cpu" else 30_000_000) // side**2,
        ),
    )
    count = mask.sum()

    def needed(x):
        order = jnp.pad(
            jnp.argsort(~mask, stable=True),
            (0, -groups % chunk),
            constant_values=groups,
        )

        def body(carry):
            start, x = carry
            rows = jax.lax.dynamic_slice(order, (start,), (chunk,))
            rows = jnp.where(start + jnp.arange(chunk) < count, rows, groups)
            part = jax.tree.map(lambda a: a.at[rows].get(mode="clip"), (x, *operands))
            new = f(*part)
            return start + chunk, jax.tree.map(
                lambda old, a: old.at[rows].set(a, mode="drop"), x, new
            )

        return jax.lax.while_loop(
            lambda carry: carry[0] < count, body, (jnp.int32(0), x)
        )[1]

    # A branch, not a loop of no passes: out of that XLA may take what does not change in it, and compute it always.
    return jax.lax.cond(count > 0, needed, lambda x: x, x)
