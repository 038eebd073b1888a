"""The networks that are timed: UCNs of three sizes, their training step and images."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import ibnn_jax

BATCH = 128
NETWORKS = {  # layers, channels, shape of an image
    "UCN(1,3) 28x28x1": (1, 3, (28, 28, 1)),
    "UCN(2,3) 32x32x3": (2, 3, (32, 32, 3)),
    "UCN(3,8) 32x32x3": (3, 8, (32, 32, 3)),
}
SMALL, MIDDLE, LARGE = NETWORKS


class Network:
    """A UCN of one size: its step and its inference, as pure functions of one seed.

    Args:
        name: of `NETWORKS`.
        lam: initial lam of every layer; None is the standard twin.
        convolution: of every layer. solver: of every implicit layer.
    """

    def __init__(
        self,
        name: str,
        lam: float | None,
        convolution: Callable = jax.lax.conv_general_dilated,
        solver: ibnn_jax.MeanField | str = "auto",
    ):
        layers, channels, shape = NETWORKS[name]
        implicit = partial(ibnn_jax.ImplicitBias, lam=lam, solver=solver)
        neuron = None if lam is None else implicit
        self.network = partial(
            ibnn_jax.UCN,
            shape,
            10,
            layers=layers,
            channels=channels,
            neuron=neuron,
            conv_general_dilated=convolution,
        )
        self.graph = _split(nnx.eval_shape(self.build, jax.random.key(0)))[0]

    def build(self, key) -> ibnn_jax.UCN:
        return self.network(rngs=nnx.Rngs(key))

    def start(self, key):
        """(params, rest) of one seed."""
        return _split(self.build(key))[1:]

    def adopt(self, twin: "Network", key, params, rest):
        """(params, rest) of one seed with the weights of its trained twin."""
        model = self.build(key)
        ibnn_jax.transfer(twin.merge(params, rest), model)
        return _split(model)[1:]

    def merge(self, params, rest) -> ibnn_jax.UCN:
        return nnx.merge(self.graph, params, rest, copy=True)

    def gradient(self, params, rest, images, labels):
        """(dL/dparams, rest after the pass) of the mean cross-entropy."""

        def loss(params):
            model = self.merge(params, rest)
            model.train()
            cross_entropy = optax.softmax_cross_entropy_with_integer_labels(
                model(images), labels
            )
            return cross_entropy.mean(), _split(model)[2]

        return jax.grad(loss, has_aux=True)(params)

    def step(self, params, rest, images, labels):
        """(params, rest) after a step of clipped gradient descent."""
        gradient, rest = self.gradient(params, rest, images, labels)
        clip = optax.clip_by_global_norm(1.0)
        gradient, _ = clip.update(gradient, optax.EmptyState())
        return jax.tree.map(lambda a, g: a - 0.01 * g, params, gradient), rest

    def infer(self, params, rest, images):
        """Logits."""
        model = self.merge(params, rest)
        model.eval()
        return model(images)


def _split(model):
    return nnx.split(model, nnx.Param, ...)


def training_images(shape: tuple[int, int, int], count: int):
    """(images, labels, "real" or "synthetic"): smooth random images where the data
    set of this shape is not prepared."""
    from train import data

    try:
        dataset = data.load("fashion_mnist" if shape[2] == 1 else "cifar10", None)
    except (FileNotFoundError, ImportError):
        return *_smooth(shape, count), "synthetic"
    images = dataset.train_images[:count] / np.float32(255)
    return images, dataset.train_labels[:count].astype(np.int32), "real"


def _smooth(shape, count):
    rng = np.random.default_rng(0)
    rough = rng.random((count, *shape)).astype(np.float32)
    shifts = ((0, 0), (1, 0), (0, 1), (1, 1))
    images = sum(np.roll(rough, shift, (1, 2)) for shift in shifts) / 4
    return images, rng.integers(0, 10, count, dtype=np.int32)


def first_activations(network: Network, params, rest, images) -> jnp.ndarray:
    """y of the first layer of the first seed."""
    first = jax.tree.map(lambda a: a[0], (params, rest))
    return network.merge(*first).blocks[0].conv(images)
