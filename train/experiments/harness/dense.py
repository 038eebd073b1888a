"""Small networks trained by Adam, and the explicit layer they are compared with.

Imports JAX.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jaxtyping import Float

from train.runs.ensemble import Ensemble

DROPS = 4  # parts of the training, after each of which the learning rate falls by 10


class Explicit(nnx.Module):
    """Two dense layers with ReLU, in the place of an equilibrium layer.

    It has as many parameters as `NEMON`, whose matrix stands for the second kernel and
    whose weights log_eta stand for the second offset.
    """

    def __init__(self, in_features: int, features: int, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(in_features, features, rngs=rngs)
        self.second = nnx.Linear(features, features, rngs=rngs)

    def __call__(self, x: Float[Array, "... in"], *, return_stats: bool = False):
        """The activations; with return_stats, (activations, None)."""
        v = nnx.relu(self.second(nnx.relu(self.first(x))))
        return (v, None) if return_stats else v

    def interval(
        self, x_lo: Float[Array, "... in"], x_hi: Float[Array, "... in"]
    ) -> tuple[Float[Array, "... features"], Float[Array, "... features"]]:
        """Bounds on the output for all x_lo <= x <= x_hi, layer by layer."""
        for layer in (self.first, self.second):
            centre = layer((x_lo + x_hi) / 2)
            radius = (x_hi - x_lo) / 2 @ jnp.abs(layer.kernel[...])
            x_lo, x_hi = nnx.relu(centre - radius), nnx.relu(centre + radius)
        return x_lo, x_hi

    def lipschitz(
        self, C: Float[Array, "q features"]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """(the product of the norms, the componentwise bound), l-inf to l-inf."""
        weights = [jnp.abs(layer.kernel[...]).T for layer in (self.first, self.second)]
        C = jnp.abs(C)
        norms = [matrix.sum(1).max() for matrix in (*weights, C)]
        componentwise = C @ (weights[1] @ weights[0].sum(1))
        return norms[0] * norms[1] * norms[2], componentwise.max()


@dataclasses.dataclass(frozen=True, eq=False)
class _Training:
    """The pieces of `fit` that every epoch needs."""

    build: Callable[[nnx.Rngs], nnx.Module]
    loss: Callable[..., Float[Array, ""]]
    optimizer: optax.GradientTransformation
    batch_size: int
    steps: int  # of an epoch
    epochs: int

    @functools.cached_property
    def _graph(self) -> nnx.GraphDef:
        return nnx.split(nnx.eval_shape(lambda: self.build(nnx.Rngs(0))))[0]

    def network(self, params: nnx.State) -> nnx.Module:
        return nnx.merge(self._graph, params, copy=True)

    def init(self, key: Array) -> tuple:
        """Params and the optimiser's state of one seed."""
        params = nnx.split(self.build(nnx.Rngs(key)))[1]
        return params, self.optimizer.init(params)

    def epoch(self, carry: tuple, key: Array, number: Array, x: Array, y: Array):
        """One pass over the data of one seed, in a new order."""
        used = self.steps * self.batch_size
        order = jax.random.permutation(key, len(x))[:used]
        first = number * self.steps
        progress = first + jnp.arange(self.steps)
        progress = progress / max(1, self.steps * self.epochs - 1)

        def step(carry, batch):
            rows, progress = batch
            return self._step(carry, x[rows], y[rows], progress), None

        batches = order.reshape(self.steps, self.batch_size), progress
        return jax.lax.scan(step, carry, batches)[0]

    def _step(self, carry, x, y, progress):
        params, state = carry
        gradient = jax.grad(
            lambda params: self.loss(self.network(params), x, y, progress)
        )(params)
        updates, state = self.optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state


def fit(
    build: Callable[[nnx.Rngs], nnx.Module],
    loss: Callable[..., Float[Array, ""]],
    x: Float[Array, "N ..."],
    y: Array,
    *,
    seeds: int,
    epochs: int,
    batch_size: int = 100,
    rate: float = 1e-3,
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> Ensemble:
    """Train networks side by side by Adam; each seed has its own weights and order.

    Args:
        build: random streams -> a network whose variables are all Params.
        loss: (network, x, y, progress) -> the mean loss of a batch; progress goes from
            0 at the first step to 1 at the last.
        x, y: the training data. Rows beyond the last full batch are left out, others in
            every epoch.
        rate: of the first quarter of the epochs; it falls by 10 after every quarter.
        on_epoch: called with the number of epochs done, after each.
    """
    batch_size = min(batch_size, len(x))
    steps = len(x) // batch_size
    drops = {steps * epochs * part // DROPS: 0.1 for part in range(1, DROPS)}
    optimizer = optax.adam(optax.piecewise_constant_schedule(rate, drops))
    training = _Training(build, loss, optimizer, batch_size, steps, epochs)
    fold_in = jax.vmap(jax.random.fold_in, (None, 0))
    seed_keys = fold_in(jax.random.key(0), jnp.arange(seeds))
    init_keys, order_keys = jax.vmap(jax.random.split, out_axes=1)(seed_keys)
    carry = jax.vmap(training.init)(init_keys)
    every = jax.jit(jax.vmap(training.epoch, (0, 0, None, None, None)))
    for number in range(epochs):
        keys = jax.vmap(jax.random.fold_in, (0, None))(order_keys, number)
        carry = jax.block_until_ready(every(carry, keys, number, x, y))
        on_epoch(number + 1)
    return Ensemble(training.network, (carry[0],), [epochs] * seeds)
