"""The trained networks of a finished run, ready to be called."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from train.engine import loop
from train.engine import program as programs
from train.runs import checkpoint


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Networks of one structure: network(*weights of one seed) is its model, in evaluation mode.

    weights: (params, rest), every array with a leading axis of seeds, as they were at each seed's lowest test loss.
    epochs: the epoch of that loss, of every seed.
    """

    network: Callable
    weights: tuple
    epochs: list[int]

    def each(self, f, *shared, **static):
        """f(model, seed number, *shared, **static) for every seed at once, jitted: compiled once per f and static."""
        return _compiled(self.network, f, tuple(static.items()))(
            self.weights, jnp.arange(self.seeds), *shared
        )

    @property
    def seeds(self):
        return len(jax.tree.leaves(self.weights)[0])


@functools.lru_cache(maxsize=32)
def _compiled(network, f, static):
    def one(weights, number, *shared):
        return f(network(*weights), number, *shared, **dict(static))

    def every(weights, numbers, *shared):
        return jax.vmap(one, in_axes=(0, 0, *[None] * len(shared)))(
            weights, numbers, *shared
        )

    return jax.jit(every)


def load(config, dataset):
    """The Ensemble in a run's folder. FileNotFoundError if it holds no checkpoint; ValueError if that is of another program."""
    program = programs.build(
        config, dataset.image_shape, dataset.classes, config.model == "ibnn"
    )
    template = loop.blank(
        config, program, jax.random.split(jax.random.key(0), config.seeds)
    )
    with checkpoint.Checkpoints(f"{config.out}/checkpoints/{config.model}") as saved:
        arrays = saved.arrays()
    if arrays is None:
        raise FileNotFoundError(
            f"there is no checkpoint of {config.model} in {config.out}"
        )
    run = checkpoint.restored(arrays, template)
    epochs = np.nanargmin(run.history["test_loss"], axis=1) + 1
    return Ensemble(
        program.network, jax.tree.map(jnp.asarray, run.best), epochs.tolist()
    )
