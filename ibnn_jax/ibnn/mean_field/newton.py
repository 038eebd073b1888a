"""Newton's method for all neurons of a group, through a grid.

In x = p (z - centre), Y = p (y - centre) and q = lam p the equation reads

    x_i + q G(x_i) = Y_i,    G(t) = 1/n sum_k tanh(x_k - t),

and a step solves its linearisation (`linearised`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from ibnn_jax.ibnn.mean_field.grid import AnyGrid
from ibnn_jax.ibnn.mean_field.limits import SLOPE_ERROR, bearable
from ibnn_jax.ibnn.mean_field.linearised import look, mean_of, ratio, respond, share_of
from ibnn_jax.ibnn.mean_field.starts import collapsed

LINEAR_STEPS = 30  # of Newton's inner solves, at most
# An inner solve may leave so many times what may be left in the end: it leaves less. A
# step that would have to leave a smaller share than the second is not the last one
LAST, FINEST = 20, 0.1
PROGRESS = 0.8  # a step is a good one if it leaves at most so much of the residual
# A step goes too far if the energy rises at its end by this share of how it fell at
# its beginning
TOO_FAR = 0.5
# Neurons beyond an end of the grid do not see each other. Gradients are accepted where
# |q| times their share, less one neuron, is at most this.
BEYOND = 3e-3


class Effort(NamedTuple):
    """What is done for a group before it is given up."""

    steps: int
    failures: int  # steps without progress
    linear_tol: float  # of the inner solves, at most: the next step corrects the rest
    restart: int  # the step that begins again where all neurons are near
    hopeless: float  # p times the residual of a start that is not believed


# Where pairs solve what is left, and where nothing does: there inner solves are finer,
# because an outlier's residual hides those of many neurons
BRIEF = Effort(steps=16, failures=5, linear_tol=0.7, restart=16, hopeless=300)
THOROUGH = Effort(steps=80, failures=20, linear_tol=0.1, restart=24, hopeless=5)


class Solved(NamedTuple):
    """An attempt's outcome, in units of x."""

    x: Float[Array, "G n"]
    bias: Float[Array, "G n"]  # G(x)
    slope: Float[Array, "G n"]  # s
    residual: Float[Array, "G 1"]
    extra: Float[Array, "G 1"]  # of it, that a neuron beside a crowd may see
    resolved: Bool[Array, "G 1"]  # the gradient is right: s, and what is off the grid
    steps: Int[Array, "G 1"]
    done: Bool[Array, "G 1"]  # more steps would not help


class _State(NamedTuple):
    x: Float[Array, "G n"]
    direction: Float[Array, "G n"]  # of the last step
    length: Float[Array, "G 1"]
    drop: Float[Array, "G 1"]  # how fast the energy fell along it where it began
    bias: Float[Array, "G n"]
    slope: Float[Array, "G n"]
    residual: Float[Array, "G 1"]
    before: Float[Array, "G 1"]  # the residual of the last good step
    failures: Int[Array, "G 1"]
    active: Bool[Array, "G 1"]
    steps: Int[Array, "G 1"]
    count: Array


def solve(
    grid: AnyGrid,
    y: Float[Array, "G n"],
    q: Float[Array, "G 1"],
    x: Float[Array, "G n"],
    *,
    tol: Float[Array, "G 1"],
    max_steps: int,
    effort: Effort = BRIEF,
    left: Float[Array, ""] | float = 0.0,
) -> Solved:
    """x with x + q G(x) = y up to tol and rounding, from the x given, for y around 0.

    The residual r is minus the gradient of a convex energy. Where a step u goes too
    far, so that r . u turns negative, the secant of r . u says how much of it to take.

    Args:
        left: the share of the groups that may be left undone.
    """
    last = min(effort.steps, max_steps + 1)  # it only looks

    def unfinished(active, count):
        return (share_of(active) > left) & (count < last)

    def body(state: _State) -> _State:
        bias, slope = look(grid, state.x, q)
        r = y - state.x - q * bias
        residual = jnp.abs(r).max(-1, keepdims=True)
        # A start is not accepted for what rounding may leave of a solution.
        floor = jnp.where(state.count > 0, _floor(y, state.x, q, slope), 0)
        limit = jnp.maximum(jnp.minimum(tol, bearable(slope)), floor)
        unmet = (jnp.abs(r) > limit).any(-1, keepdims=True)
        rest = mean_of(r * state.direction)
        too_far = rest < -TOO_FAR * state.drop
        failed = ~(residual <= PROGRESS * state.before) & unmet & ~too_far
        failures = state.failures + (failed & state.active).astype(jnp.int32)
        active = state.active & unmet & (failures < effort.failures)
        count = state.count + 1

        def move(x, direction, length, drop):
            to = _inner_tol(tol / residual, effort.linear_tol)
            new = respond(grid, x, q, slope, r, tol=to, most=LINEAR_STEPS).u
            shorter = length * ratio(drop, drop - rest)
            moved = x + jnp.where(too_far, (shorter - length) * direction, new)
            again = count == effort.restart
            moved = jnp.where(again, collapsed(y, q), moved)
            direction = jnp.where(too_far, direction, new)
            return (
                jnp.where(active, moved, x),
                jnp.where(again, 0, direction),  # a step to nowhere goes not too far
                jnp.where(too_far, shorter, 1),
                jnp.where(too_far, drop, mean_of(r * new)),
            )

        going = unfinished(active, count)
        step = jax.lax.cond(going, move, lambda *step: step, *state[:4])
        before = jnp.where(too_far, state.before, residual)
        before = jnp.where(failed | (count == effort.restart), jnp.inf, before)
        steps = state.steps + active.astype(jnp.int32)
        return _State(
            *step,
            bias=bias,
            slope=slope,
            residual=residual,
            before=before,
            failures=failures,
            active=active,
            steps=steps,
            count=count,
        )

    zeros, none = jnp.zeros_like(x), jnp.zeros_like(tol, dtype=jnp.int32)
    far, all_of = jnp.full_like(tol, jnp.inf), tol == tol
    state = _State(
        x,
        direction=zeros,
        length=jnp.zeros_like(tol),
        drop=jnp.zeros_like(tol),
        bias=zeros,
        slope=zeros,
        residual=far,
        before=far,
        failures=none,
        active=all_of,
        steps=none,
        count=jnp.int32(0),
    )
    state = jax.lax.while_loop(lambda s: unfinished(s.active, s.count), body, state)
    return _judged(grid, y, q, state)


def _inner_tol(wanted: Float[Array, "G 1"], most: float) -> Float[Array, "G 1"]:
    """The share of the residual that a step's inner solve may leave, where `wanted` may
    be left in the end.

    Little if the step may be the last, otherwise `most`.
    """
    tol = LAST * wanted
    return jnp.where(tol < FINEST, most, jnp.minimum(tol, most))


def _judged(
    grid: AnyGrid,
    y: Float[Array, "G n"],
    q: Float[Array, "G 1"],
    state: _State,
) -> Solved:
    """The outcome, with what the grid's errors add to the residual."""
    r = y - state.x - q * state.bias
    limit = jnp.maximum(bearable(state.slope), _floor(y, state.x, q, state.slope))
    sharp = (jnp.abs(r) <= limit).all(-1, keepdims=True)
    reach = jnp.asarray(grid.reach, y.dtype)
    above, below = state.x > reach, state.x < -reach
    crowd = jnp.maximum(*(mean_of(side.astype(y.dtype)) for side in (above, below)))
    crowd = jnp.abs(q) * jnp.maximum(crowd - 1 / y.shape[1], 0)
    # Only neurons near each other see the error, and q d says how many of them are. At
    # most half of |q| counts, as for two clumps at the worst places, because equal
    # neurons make none. What one neuron beside a crowd sees, up to all of it, is told.
    flattest = state.slope.min(-1, keepdims=True)
    steepest = state.slope.max(-1, keepdims=True)
    felt = jnp.maximum(1 / flattest - 1, 1 - 1 / steepest)  # the largest |q d|
    near = jnp.minimum(jnp.abs(q) / 2, felt)
    error = jnp.asarray(grid.error, y.dtype)
    residual = state.residual + error * near + crowd
    # A share of d changes s by that share of |q| d s = |s - 1|.
    share = jnp.asarray(grid.slope_error, y.dtype) * (steepest - 1)
    resolved = sharp & (share <= SLOPE_ERROR) & (crowd <= BEYOND)
    done = ~state.active
    return Solved(
        state.x,
        state.bias,
        state.slope,
        residual,
        error * (felt - near),
        resolved,
        state.steps,
        done,
    )


def _floor(y, x, q, slope) -> Float[Array, "G n"]:
    """What rounding may leave of the residual: y, q d x, and q times a sum like G."""
    eps = float(jnp.finfo(y.dtype).eps)
    return 4 * eps * (jnp.abs(y) + jnp.abs(x) / slope + jnp.abs(q))
