"""The linearised equation of all neurons of a group, solved through a grid.

In x = p (z - centre) and q = lam p the equation x + q G(x) = Y of `newton` has the
linearisation H u = f: with d_i = 1/n sum_k sech^2(x_k - x_i),

    u_i = s_i (f_i - q eta(x_i)),    eta(t) = 1/n sum_k u_k sech^2(x_k - t),

where s = 1 / (1 - q d) is the slope of x in Y. Steps of Newton's method solve it, and
so does the adjoint. G and eta are smooth on the scale 1 whatever the neurons do, so a
grid (`grid`) carries them: a product with H costs one pass over the neurons to the grid
and one back. Conjugate gradients preconditioned by s need few of these.

Nothing changes when all neurons move alike: H 1 = 1, sum_i G(x_i) = 0. So the mean of
u is that of f, only the rest is solved for, and for the rest sech^2 less any constant
acts as sech^2 does. Less the mean of d, nothing is left of it where all neurons are
near.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ibnn_jax.ibnn.mean_field.grid import AnyGrid

# A step of Jacobi's method leaves at most |1 - s| of a residual, in the norm of
# `respond`. To be safe, so many times as much is reckoned with
SAFETY = 3


class Response(NamedTuple):
    """What solves H u = f, and how well."""

    u: Float[Array, "G n"]
    ok: Bool[Array, "G 1"]  # the residual is small enough
    done: Bool[Array, "G 1"]  # it is within the tolerance


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
        tol: the largest root of sum s r^2 / sum s f^2, for the residual r; by a bound
            on what the last step, of Jacobi's kind, takes off it.
        most: steps.
        start: taken in groups where it is nearer than 0.
        left: the share of the groups that may be left undone.
    """
    within = inside(grid, x)
    share = jnp.maximum(mean_of(within.astype(x.dtype)), 1e-6)
    mean = mean_of(jnp.where(within, f, 0)) / share
    f = jnp.where(within, f - mean, f)
    level = mean_of(1 - 1 / s) / share  # q times the mean of d

    def seen(u):
        """q eta for the u, and as if the mean of u were 0."""

        def on(grid, x, u):
            place = grid.place(x)
            charges = place.charges(u)
            (eta,) = place.read(grid.slope(charges))
            return eta

        u = jnp.where(within, u, 0)
        eta = q * grid.run(on, x, u) - level * mean_of(u)
        return jnp.where(within, eta, 0)

    # The share of a residual that is left after the Jacobi step at the end
    leaves = jnp.minimum(SAFETY * jnp.abs(1 - s).max(-1, keepdims=True), 1)

    def size(r):
        return mean_of(s * r * r)

    def unfinished(square):
        return share_of(leaves**2 * square > limit) > left

    def body(state):
        i, u, r, direction, square, _ = state
        image = direction / s + seen(direction)
        whole = i < 0  # the start is taken as a step
        length = ratio(square, mean_of(direction * image))
        length = jnp.where(whole, 1, length)
        rest = r - length * image
        new = size(rest)
        if start is not None:  # it is dropped where 0 is at least as near
            near = (i >= 0) | (new < square)
            length, new = jnp.where(near, length, 0), jnp.where(near, new, square)
            rest = jnp.where(near, rest, r)
        u, r = u + length * direction, rest
        turn = jnp.where(whole, 0, ratio(new, square))
        direction = s * r + turn * direction
        return i + 1, u, r, direction, new, unfinished(new)

    square = size(f)
    limit = tol * tol * square
    step, direction = (0, s * f) if start is None else (-1, start)
    first = jnp.int32(step), jnp.zeros_like(f), f, direction, square
    state = (*first, unfinished(square))
    state = jax.lax.while_loop(lambda s: s[-1] & (s[0] <= most), body, state)
    _, u, r, _, square, _ = state
    u, square = u + s * r, leaves**2 * square  # the Jacobi step: all is at hand
    excess = mean_of(jnp.where(within, u, 0)) / share
    u = jnp.where(within, u - excess + mean, u)
    return Response(u, ok=square <= 4 * limit, done=square <= limit)


def moment(grid: AnyGrid, x: Float[Array, "G n"]) -> Float[Array, "G n"]:
    """1/n sum_k (x_k - x_i) sech^2(x_k - x_i) at the neurons."""

    def on(grid, x):
        place = grid.place(x)
        (moments,) = place.read(grid.moment(place.charges()))
        return moments

    return jnp.where(inside(grid, x), grid.run(on, x), 0)


def mean_of(x: Float[Array, "G n"]) -> Float[Array, "G 1"]:
    """The mean over the neurons, as a product: docs/notes/xla.md#means-as-products."""
    ones = jnp.full((x.shape[1], 1), 1 / x.shape[1], x.dtype)
    return jnp.matmul(x, ones, precision=jax.lax.Precision.HIGHEST)


def share_of(mask: Bool[Array, "G 1"]) -> Float[Array, ""]:
    """Of the groups, those of the mask."""
    return mask.mean(dtype=jnp.float32)


def ratio(a, b):
    """a / b, and 0 where b is not positive."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
