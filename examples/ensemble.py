"""Many seeds of a network of one's own in one program: vmap over the seeds."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import ibnn_jax
from examples.data import shapes


class Network(nnx.Module):
    """Images [N, 16, 16, 1] -> logits [N, 3], one hidden layer of coupled neurons."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = ibnn_jax.IBNNLinear(256, 32, rngs=rngs)
        self.head = nnx.Linear(32, 3, rngs=rngs)

    def __call__(self, images):
        return self.head(self.hidden(images.reshape(len(images), -1)))


@nnx.vmap(in_axes=0, out_axes=0)
def create(key):
    return Network(nnx.Rngs(key))


@nnx.vmap(in_axes=(0, None), out_axes=0)
def logits_of(model, images):
    return model(images)


def main(steps: int = 100, seeds: int = 5) -> jax.Array:
    """Test accuracy of each seed."""
    images, labels = map(jnp.asarray, shapes(512))
    models = create(jax.random.split(jax.random.key(0), seeds))
    optimizer = nnx.Optimizer(models, optax.adam(3e-3), wrt=nnx.Param)

    @nnx.jit
    def step(models, optimizer):
        def loss(models):
            logits = logits_of(models, images)
            losses = optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, 3))
            return losses.mean(1).sum()  # seeds do not mix

        optimizer.update(models, nnx.grad(loss)(models))
        ibnn_jax.project(models)

    for _ in range(steps):
        step(models, optimizer)
    images, labels = map(jnp.asarray, shapes(256, seed=1))
    logits = logits_of(models, images)
    accuracy = (logits.argmax(-1) == labels).mean(1)
    together = (jax.nn.softmax(logits).mean(0).argmax(-1) == labels).mean()
    print("seeds", accuracy, "together", together)
    return accuracy


if __name__ == "__main__":
    main()
