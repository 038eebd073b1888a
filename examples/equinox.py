"""Implicit-bias neurons in Equinox: lam is a field, and a vmap is the batch."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import ibnn_jax
from examples.data import shapes

P, COUPLING = 10.0, ibnn_jax.Uniform((-1,))


class Network(eqx.Module):
    """One image -> logits, with one hidden layer whose features are coupled."""

    affine: eqx.nn.Linear
    lam: jax.Array
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.affine = eqx.nn.Linear(256, 32, key=keys[0])
        self.head = eqx.nn.Linear(32, 3, key=keys[1])
        self.lam = jnp.zeros(())

    def __call__(self, image):
        y = self.affine(image.ravel())
        return self.head(jax.nn.relu(ibnn_jax.implicit_bias(y, self.lam, P, COUPLING)))


def main(steps: int = 200) -> float:
    """Accuracy on images that it was not trained on."""
    images, labels = map(jnp.asarray, shapes(512))
    network, optimizer = Network(jax.random.key(0)), optax.adam(3e-3)
    state = optimizer.init(eqx.filter(network, eqx.is_array))

    def loss(network):
        logits = jax.vmap(network)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @eqx.filter_jit
    def step(network, state):
        updates, state = optimizer.update(eqx.filter_grad(loss)(network), state)
        network = eqx.apply_updates(network, updates)
        lam = ibnn_jax.project_lam(network.lam, P, COUPLING)  # one solution there
        return eqx.tree_at(lambda network: network.lam, network, lam), state

    for _ in range(steps):
        network, state = step(network, state)
    images, labels = map(jnp.asarray, shapes(256, seed=1))
    accuracy = float((jax.vmap(network)(images).argmax(-1) == labels).mean())
    print(f"accuracy {accuracy:.3f}, lam {network.lam:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
