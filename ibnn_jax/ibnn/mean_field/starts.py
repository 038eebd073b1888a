"""Where Newton's method on a grid begins, in x = p z and Y = p y around 0."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from ibnn_jax.ibnn.mean_field.grid import AnyGrid, OneOf

BLOCKS = 64  # into which `pooled` divides the neurons, at least
# A slope s of x in y that is too large for Jacobi's method: for lam > 0 a step turns an
# error that neurons share into s - 1 times that
STEEP = 1.5


def collapsed(y: Float[Array, "G n"], q: Float[Array, "G 1"]) -> Float[Array, "G n"]:
    """The solution of the linearised equation: where all neurons are near."""
    return y / (1 - jnp.minimum(q, 0))


def begin(
    grid: OneOf,
    x: Float[Array, "G n"],
    y: Float[Array, "G n"],
    q: Float[Array, "G 1"],
    residual: Float[Array, "G 1"],
    *,
    slope: Float[Array, "G n"],
    hopeless: float,
) -> Float[Array, "G n"]:
    """A better x, from one of this residual and slope in y.

    Anew where the residual is `hopeless` or more, which few groups need: on the last
    grid, so that it is compiled once. Else by a Jacobi step, if most groups are not
    steep.
    """
    rough = ~(residual < hopeless)  # or NaN
    steep = slope.max(-1) > STEEP
    gentle = 2 * steep.mean() < 1
    how = jnp.where(rough.any(), 2, gentle.astype(jnp.int32))

    def anew(x):
        start = jnp.where(rough, pooled(y, q), x)
        rest = jax.lax.fori_loop(0, 2, lambda _, x: at_rest(grid.last, x, y, q), start)
        return jnp.where(rough, rest, x)

    def better(x):
        return relaxed(grid, x, y, q)

    return jax.lax.switch(how, (lambda x: x, better, anew), x)


def relaxed(
    grid: AnyGrid,
    x: Float[Array, "G n"],
    y: Float[Array, "G n"],
    q: Float[Array, "G 1"],
) -> Float[Array, "G n"]:
    """x after a step of Jacobi's method: every neuron solves its own equation, to first
    order, while the others stay.

    Where neurons err to both sides, as cells make them do, these errors do not move the
    others, and nothing is left of them. A step of Newton's method, which costs three
    times as much, is then seldom needed. An error that all share stays, and next to the
    bound, where slopes are large, it grows.
    """

    def on(grid, x, y, q):
        place = grid.place(x)
        bias, falls = place.read_with_slope(grid.bias(place.charges()))
        return x + (y - x - q * bias) / (1 + q * jnp.clip(falls, -1, 0))

    return grid.run(on, x, y, q)


def at_rest(
    grid: AnyGrid,
    x: Float[Array, "G n"],
    y: Float[Array, "G n"],
    q: Float[Array, "G 1"],
) -> Float[Array, "G n"]:
    """t with t + q G(t) = y, where G is that of x: `relaxed`, not to first order but
    wherever t lies.
    """

    def on(grid, x, y, q):
        place = grid.place(x)
        t, bias = place.samples(grid.bias(place.charges()))
        return _invert(t, bias, y, q)

    return grid.run(on, x, y, q)


def _invert(t: Float[Array, "#G k"], bias: Float[Array, "G k"], y, q):
    """t with t + q G(t) = y, for a G that is linear between these."""
    at = t + q * bias  # rises in every group
    groups, count = bias.shape
    row = count * jnp.arange(groups, dtype=jnp.int32)[:, None]

    def take(values, index):  # docs/notes/xla.md#indices-on-the-flat-array
        index = (row + index).astype(jnp.uint32)
        return values.reshape(-1).at[index].get(mode="promise_in_bounds")

    low = jnp.zeros_like(y, dtype=jnp.int32)
    for step in 2 ** np.arange((count - 1).bit_length())[::-1]:
        middle = jnp.minimum(low + np.int32(step), count - 2)
        low = jnp.where(take(at, middle) <= y, middle, low)
    before, after = take(at, low), take(at, low + 1)
    u = jnp.clip((y - before) / (after - before), 0, 1)
    return y - q * ((1 - u) * take(bias, low) + u * take(bias, low + 1))


def _ends(n: int) -> np.ndarray:
    """Where blocks of n neurons end: equal ones, and smaller ones for the tails."""
    tail = (1.2 ** np.arange(np.log(n) / np.log(1.2) + 1)).astype(int)
    ends = np.concatenate([np.arange(BLOCKS + 1) * n // BLOCKS, tail, n - tail])
    return np.unique(ends[(ends >= 0) & (ends <= n)])


def pooled(y: Float[Array, "G n"], q: Float[Array, "G 1"]) -> Float[Array, "G n"]:
    """About the solution if tanh were the sign.

    Number k of n in ascending order is then pushed by -q (1 - (2k + 1) / n), and what
    would be pushed past each other stays together: isotonic regression, here of the
    means of blocks.
    """
    n = y.shape[1]
    index = jax.lax.broadcasted_iota(jnp.int32, y.shape, 1)
    y, order = jax.lax.sort((y, index), num_keys=1)
    push = 1 - (2 * np.arange(n) + 1) / n
    pushed = y - q * jnp.asarray(push, y.dtype)[None]
    ends = _ends(n)
    upto = jnp.pad(jnp.cumsum(pushed, axis=1), ((0, 0), (1, 0)))[:, ends]
    # The mean from block i to block k; the least of those from i to k or beyond
    many = (ends[1:] - ends[:-1, None])[None]
    sums = upto[:, None, 1:] - upto[:, :-1, None]
    means = sums / np.where(many > 0, many, 1).astype(y.dtype)
    means = jnp.where(many > 0, means, jnp.inf)
    least = jax.lax.cummin(means, axis=2, reverse=True)
    level = jnp.where(many > 0, least, -jnp.inf).max(1)
    alone = level == jnp.diagonal(means, axis1=1, axis2=2)
    block = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
    x = jnp.where(alone[:, block], pushed, level[:, block])
    row = jnp.arange(len(y), dtype=jnp.int32)[:, None]
    return (0 * x).at[row, order].set(x, unique_indices=True)
