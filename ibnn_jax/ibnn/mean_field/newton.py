"""Newton's method for all neurons of a group, through a grid; the adjoint is one step.

In x = p (z - centre), Y = p (y - centre) and q = lam p the equation reads

    x_i + q G(x_i) = Y_i,    G(t) = 1/n sum_k tanh(x_k - t),

and its linearisation H u = f, with d_i = 1/n sum_k sech^2(x_k - x_i), is

    u_i = s_i (f_i - q eta(x_i)),    eta(t) = 1/n sum_k u_k sech^2(x_k - t),

where s = 1 / (1 - q d) is the slope of x in Y. G and eta are smooth on the scale 1
whatever the neurons do, so a grid (`grid`) carries them: a product with H costs one
pass over the neurons to the grid and one back. Conjugate gradients preconditioned by s
need few of these.

Nothing changes when all neurons move alike: H 1 = 1, sum_i G(x_i) = 0. So the mean of
u is that of f, only the rest is solved for, and for the rest sech^2 less any constant
acts as sech^2 does. Less the mean of d, nothing is left of it where all neurons are
near.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from ibnn_jax.ibnn.mean_field.grid import AnyGrid
from ibnn_jax.ibnn.mean_field.limits import SLOPE_ERROR, bearable
from ibnn_jax.ibnn.mean_field.starts import collapsed

LINEAR_STEPS = 30  # of Newton's inner solves, at most
LAST, FINEST = 20, 0.1  # `_inner_tol`
TRUST = (
    3  # a Jacobi step leaves |1 - s| of a residual, and is taken to leave so much more
)
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
    resolved: Bool[Array, "G 1"]  # the gradient is right: s, and what is off the grid
    steps: Int[Array, "G 1"]
    done: Bool[Array, "G 1"]  # more steps would not help


class Response(NamedTuple):
    """What solves H u = f, and how well."""

    u: Float[Array, "G n"]
    ok: Bool[Array, "G 1"]  # the residual is small enough
    done: Bool[Array, "G 1"]  # it is within the tolerance


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
        return (_share(active) > left) & (count < last)

    def body(state: _State) -> _State:
        bias, slope = look(grid, state.x, q)
        r = y - state.x - q * bias
        residual = jnp.abs(r).max(-1, keepdims=True)
        # A start is not accepted for what rounding may leave of a solution.
        floor = jnp.where(state.count > 0, _floor(y, state.x, q, slope), 0)
        limit = jnp.maximum(jnp.minimum(tol, bearable(slope)), floor)
        unmet = (jnp.abs(r) > limit).any(-1, keepdims=True)
        rest = _mean(r * state.direction)
        too_far = rest < -TOO_FAR * state.drop
        failed = ~(residual <= PROGRESS * state.before) & unmet & ~too_far
        failures = state.failures + (failed & state.active).astype(jnp.int32)
        active = state.active & unmet & (failures < effort.failures)
        count = state.count + 1

        def move(x, direction, length, drop):
            to = _inner_tol(tol / residual, effort.linear_tol)
            new = respond(grid, x, q, slope, r, tol=to, most=LINEAR_STEPS).u
            shorter = length * _ratio(drop, drop - rest)
            moved = x + jnp.where(too_far, (shorter - length) * direction, new)
            again = count == effort.restart
            moved = jnp.where(again, collapsed(y, q), moved)
            direction = jnp.where(too_far, direction, new)
            return (
                jnp.where(active, moved, x),
                jnp.where(again, 0, direction),  # a step to nowhere goes not too far
                jnp.where(too_far, shorter, 1),
                jnp.where(too_far, drop, _mean(r * new)),
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


def _inner_tol(wanted, most: float):
    """How far to solve for a step after which this share of the residual is wanted.

    Further if it may be the last step; that is no matter of a share below `FINEST`.
    """
    tol = LAST * wanted
    return jnp.minimum(jnp.where(tol < FINEST, most, tol), most)


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
    crowd = jnp.maximum(*(_mean(side.astype(y.dtype)) for side in (above, below)))
    crowd = jnp.abs(q) * jnp.maximum(crowd - 1 / y.shape[1], 0)
    # Only neurons near each other see the error, and q d says how many of them are.
    # Half of it, as for two clumps at the worst places: equal neurons make none.
    flattest = state.slope.min(-1, keepdims=True)
    steepest = state.slope.max(-1, keepdims=True)
    felt = jnp.maximum(1 / flattest - 1, 1 - 1 / steepest)  # the largest |q d|
    near = jnp.minimum(jnp.abs(q) / 2, felt)
    error = jnp.asarray(grid.error, y.dtype) * near
    residual = state.residual + error + crowd
    # A share of d changes s by that share of |q| d s = |s - 1|.
    share = jnp.asarray(grid.slope_error, y.dtype) * (steepest - 1)
    resolved = sharp & (share <= SLOPE_ERROR) & (crowd <= BEYOND)
    done = ~state.active
    return Solved(
        state.x, state.bias, state.slope, residual, resolved, state.steps, done
    )


def _floor(y, x, q, slope) -> Float[Array, "G n"]:
    """What rounding may leave of the residual: y, q d x, and q times a sum like G."""
    eps = float(jnp.finfo(y.dtype).eps)
    return 4 * eps * (jnp.abs(y) + jnp.abs(x) / slope + jnp.abs(q))


def look(grid: AnyGrid, x: Float[Array, "G n"], q: Float[Array, "G 1"]):
    """(G, s) at the neurons; s = 1 outside the grid, where no slope is felt."""

    def on(grid, x):
        place = grid.place(x)
        charges = place.charges()
        return place.read(grid.bias(charges), grid.slope(charges))

    bias, slope = grid.run(on, x)
    slope = jnp.where(inside(grid, x), jnp.clip(slope, 0, 1), 0)
    return bias, 1 / (1 - q * slope)


def inside(grid: AnyGrid, x: Float[Array, "G n"]) -> Bool[Array, "G n"]:
    return jnp.abs(x) <= jnp.asarray(grid.reach, x.dtype)


def respond(
    grid: AnyGrid,
    x: Float[Array, "G n"],
    q: Float[Array, "G 1"],
    s: Float[Array, "G n"],
    f: Float[Array, "G n"],
    *,
    tol: Float[Array, "G 1"] | float,
    most: int,
    start: Float[Array, "G n"] | None = None,
    left: Float[Array, ""] | float = 0.0,
) -> Response:
    """u with H u = f.

    Args:
        tol: the largest root of sum s r^2 / sum s f^2, for the residual r.
        most: steps.
        start: taken in groups where it is nearer than 0.
        left: the share of the groups that may be left undone.
    """
    within = inside(grid, x)
    share = jnp.maximum(_mean(within.astype(x.dtype)), 1e-6)
    mean = _mean(jnp.where(within, f, 0)) / share
    f = jnp.where(within, f - mean, f)
    level = _mean(1 - 1 / s) / share  # q times the mean of d

    def seen(u):
        """q eta for the u, and as if the mean of u were 0."""

        def on(grid, x, u):
            place = grid.place(x)
            charges = place.charges(u)
            (eta,) = place.read(grid.slope(charges))
            return eta

        u = jnp.where(within, u, 0)
        eta = q * grid.run(on, x, u) - level * _mean(u)
        return jnp.where(within, eta, 0)

    leaves = TRUST * jnp.abs(1 - s).max(-1, keepdims=True)
    leaves = jnp.minimum(leaves, 1)  # of a residual, by the Jacobi step at the end

    def size(r):
        return _mean(s * r * r)

    def unfinished(square):
        return _share(leaves**2 * square > limit) > left

    def body(state):
        i, u, r, direction, square, _ = state
        image = direction / s + seen(direction)
        whole = i < 0  # the start is taken as a step
        length = _ratio(square, _mean(direction * image))
        length = jnp.where(whole, 1, length)
        rest = r - length * image
        new = size(rest)
        if start is not None:  # it is dropped where 0 is at least as near
            near = (i >= 0) | (new < square)
            length, new = jnp.where(near, length, 0), jnp.where(near, new, square)
            rest = jnp.where(near, rest, r)
        u, r = u + length * direction, rest
        turn = jnp.where(whole, 0, _ratio(new, square))
        direction = s * r + turn * direction
        return i + 1, u, r, direction, new, unfinished(new)

    square = size(f)
    limit = tol * tol * square
    step, direction = (0, s * f) if start is None else (-1, start)
    first = jnp.int32(step), jnp.zeros_like(f), f, direction, square
    state = (*first, unfinished(square))
    state = jax.lax.while_loop(lambda s: s[-1] & (s[0] <= most), body, state)
    _, u, r, _, square, _ = state
    u, square = u + s * r, leaves**2 * square  # a Jacobi step: all is at hand
    excess = _mean(jnp.where(within, u, 0)) / share
    u = jnp.where(within, u - excess + mean, u)
    return Response(u, ok=square <= 4 * limit, done=square <= limit)


def moment(grid: AnyGrid, x: Float[Array, "G n"]) -> Float[Array, "G n"]:
    """1/n sum_k (x_k - x_i) sech^2(x_k - x_i) at the neurons."""

    def on(grid, x):
        place = grid.place(x)
        (moments,) = place.read(grid.moment(place.charges()))
        return moments

    return jnp.where(inside(grid, x), grid.run(on, x), 0)


def _mean(x: Float[Array, "G n"]) -> Float[Array, "G 1"]:
    """The mean over the neurons, as a product: docs/notes/xla.md#means-as-products."""
    ones = jnp.full((x.shape[1], 1), 1 / x.shape[1], x.dtype)
    return jnp.matmul(x, ones, precision=jax.lax.Precision.HIGHEST)


def _share(mask: Bool[Array, "G 1"]) -> Float[Array, ""]:
    """Of the groups, those of the mask."""
    return mask.mean(dtype=jnp.float32)


def _ratio(a, b):
    """a / b, and 0 where b is not positive."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
