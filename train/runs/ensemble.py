"""The trained networks of a finished run, ready to be called."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from train.config import Config
from train.data import Dataset
from train.engine import loop
from train.engine import program as programs
from train.runs import checkpoint
from train.runs.files import read_json
from train.runs.folder import differing, read_config


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Networks of one structure, one of each seed.

    Attributes:
        network: network(*weights of one seed) is its model, in evaluation mode.
        weights: (params, rest), every array with a leading axis of seeds, as they were
            at each seed's lowest validation (or test) loss.
        epochs: the epoch of that loss, of every seed.
    """

    network: Callable
    weights: tuple
    epochs: list[int]

    def __call__(self, images) -> jax.Array:
        """Logits [S, N, classes] of images [N, H, W, C], uint8 or floats in [0, 1]."""
        return self.each(_logits, jnp.asarray(images))

    def probabilities(self, images) -> jax.Array:
        """Probabilities of the classes, of every seed: [S, N, classes]."""
        logits = self(images)
        # Half precision would leave two or three digits.
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return jax.nn.softmax(logits, axis=-1)

    def each(self, f: Callable, *shared, **static):
        """f(model, number, *shared, **static) for every seed at once, numbered from 0.

        Jitted: compiled once per f and static.
        """
        compiled = _compiled(self.network, f, tuple(static.items()))
        return compiled(self.weights, jnp.arange(self.seeds), *shared)

    @property
    def seeds(self) -> int:
        return len(jax.tree.leaves(self.weights)[0])


def _logits(model, _, images):
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    return model(images)


@functools.lru_cache(maxsize=32)
def _compiled(network: Callable, f: Callable, static: tuple) -> Callable:
    def one(weights, number, *shared):
        return f(network(*weights), number, *shared, **dict(static))

    def every(weights, numbers, *shared):
        in_axes = (0, 0, *[None] * len(shared))
        return jax.vmap(one, in_axes=in_axes)(weights, numbers, *shared)

    return jax.jit(every)


def load(config: Config, dataset: Dataset) -> Ensemble:
    """The Ensemble that this config trained on this data set, from its folder.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: it holds a run with other options, or a damaged one.
    """
    stored = read_config(config.out or ".")
    stored = dataclasses.replace(stored, model=config.model)
    names = config.differences(stored)
    if names:
        raise ValueError(
            f"{config.out} holds a run with other options: "
            f"{differing(names, config, stored)}"
        )
    has_validation = dataset.has_validation
    return _load(config, dataset.image_shape, dataset.classes, has_validation)


def load_run(path: str | Path, model: str | None = None) -> Ensemble:
    """The Ensemble of a run's folder; its data set is not needed.

    Args:
        model: "sm", "ibnn" or "nemon"; may be left out where the run has one only.

    Raises:
        FileNotFoundError: there is no run there, or no checkpoint of the model.
        ValueError: the model is not in the run, or the run is damaged.
    """
    config = read_config(path)
    models = config.models
    if model is None and len(models) > 1:
        raise ValueError(f"{path} holds two models; say which, 'sm' or 'ibnn'")
    model = models[0] if model is None else model
    if model not in models:
        raise ValueError(
            f"{path} holds the model {' and '.join(models)}, and not {model!r}"
        )
    file = Path(path, "setup.json")
    try:
        data = read_json(file)["data"]
        shape, classes = tuple(data["image_shape"]), int(data["classes"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: it does not describe the data") from error
    config = dataclasses.replace(config, model=model, out=str(path))
    return _load(config, shape, classes, bool(data.get("val_images")))


def _load(config: Config, image_shape, classes: int, has_validation: bool) -> Ensemble:
    if config.x64:
        jax.config.update("jax_enable_x64", True)
    program = programs.build(config, image_shape, classes, config.model != "sm")
    template = loop.blank(config, program, has_validation)
    folder = Path(config.out or ".", "checkpoints", config.model)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no checkpoint of {config.model} in {config.out}"
        )
    with checkpoint.Checkpoints(folder) as saved:
        arrays = saved.arrays()
    if arrays is None:
        raise FileNotFoundError(
            f"there is no checkpoint of {config.model} in {config.out}"
        )
    run = checkpoint.restored(arrays, template)
    losses = run.history["val_loss" if has_validation else "test_loss"]
    epochs = np.nanargmin(losses, axis=1) + 1
    weights = jax.tree.map(jnp.asarray, run.best)
    return Ensemble(program.network, weights, epochs.tolist())
