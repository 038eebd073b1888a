"""Implicit-bias neurons in Flax Linen: lam is a parameter like any other."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import ibnn_jax
from examples.data import shapes

P, COUPLING = 10.0, ibnn_jax.Uniform((-1,))


class Network(nn.Module):
    """Images -> logits, with one hidden layer whose features are coupled."""

    @nn.compact
    def __call__(self, images):
        y = nn.Dense(32)(images.reshape(len(images), -1))
        lam = self.param("lam", nn.initializers.zeros, ())
        v = nn.relu(ibnn_jax.implicit_bias(y, lam, P, COUPLING))
        return nn.Dense(3)(v)


def project(params):
    """The parameters with lam where the equation has one solution."""
    return params | {"lam": ibnn_jax.project_lam(params["lam"], P, COUPLING)}


def main(steps: int = 200) -> float:
    """Accuracy on images that it was not trained on."""
    images, labels = map(jnp.asarray, shapes(512))
    network, optimizer = Network(), optax.adam(3e-3)
    params = network.init(jax.random.key(0), images)["params"]
    state = optimizer.init(params)

    def loss(params):
        logits = network.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return project(optax.apply_updates(params, updates)), state

    for _ in range(steps):
        params, state = step(params, state)
    images, labels = map(jnp.asarray, shapes(256, seed=1))
    logits = network.apply({"params": params}, images)
    accuracy = float((logits.argmax(-1) == labels).mean())
    print(f"accuracy {accuracy:.3f}, lam {params['lam']:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
