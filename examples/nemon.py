"""The second family, z = relu(A z + B x + b): trained, then certified by intervals."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import ibnn_jax
from examples.data import shapes


def main(steps: int = 200, features: int = 40, eps: float = 0.02) -> float:
    """The share of test images that no change of size eps can get wrong."""
    layer = partial(ibnn_jax.NEMON, gamma=0.0)
    model = ibnn_jax.EquilibriumClassifier(
        (16, 16, 1), 3, features=features, layer=layer, rngs=nnx.Rngs(0)
    )
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, images, labels):
        def loss(model):
            logits = model(images)
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, labels
            ).mean()

        optimizer.update(model, nnx.grad(loss)(model))  # A stays well-posed

    images, labels = map(jnp.asarray, shapes(1024))
    for number in range(steps):
        rows = np.arange(64) + 64 * (number % 16)
        step(model, optimizer, images[rows], labels[rows])
    images, labels = map(jnp.asarray, shapes(256, seed=1))
    accuracy = float((model(images).argmax(-1) == labels).mean())
    certified = float(model.certified(images, labels, eps=eps).mean())
    print(f"accuracy {accuracy:.3f}, certified at {eps}: {certified:.3f}")
    return certified


if __name__ == "__main__":
    main()
