"""What is compiled once, and what is read anew at each call of an attack."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ibnn_jax.attacks import pgd, pixle

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(jax.random.key(2), (6, 4, 4, 1), jnp.float32)
ATTACKS = {
    "pgd": partial(pgd, eps=0.3, steps=2),
    "pixle": partial(pixle, restarts=2, iterations=1, patch=(2, 2)),
}


class Classifier(nnx.Module):
    """A network with all that changes in training mode."""

    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.hidden = nnx.Linear(16, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, images):
        x = self.norm(self.hidden(images.reshape(len(images), -1)))
        return self.head(self.dropout(nnx.relu(x)))


def classifier(seed):
    model = Classifier(seed)
    model.eval()
    return model


@pytest.fixture
def compilations():
    """A list that grows by one at each compilation."""
    events = []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return events


def assert_about(found, network, labels):
    """The result is about this network, not about one seen before."""
    scores = network(found.images)
    np.testing.assert_array_equal(found.fooled, scores.argmax(-1) != labels)
    loss = -jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None], 1)[:, 0]
    np.testing.assert_allclose(found.loss, loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_second_call_compiles_nothing_and_uses_the_new_weights(attack, compilations):
    model = classifier(0)
    labels = model(IMAGES).argmax(-1)
    first = attack(model, IMAGES, labels, KEY)
    nnx.update(model, nnx.state(classifier(1)))
    jax.block_until_ready(labels)
    labels = model(IMAGES).argmax(-1)
    compilations.clear()
    found = attack(model, IMAGES, labels, KEY)
    again = attack(lambda images: model(images), IMAGES, labels, KEY)
    assert compilations == []
    assert_about(found, model, labels)
    assert (found.loss != first.loss).all()
    np.testing.assert_array_equal(found.images, again.images)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jitted"])
def test_what_a_function_closes_over_is_never_out_of_date(attack, wrap):
    for seed in (0, 1):
        weights = jax.random.normal(jax.random.key(seed), (16, 3), jnp.float32)
        network = wrap(lambda x, w=weights: jnp.tanh(x.reshape(len(x), -1) @ w))
        labels = network(IMAGES).argmax(-1)
        assert_about(attack(network, IMAGES, labels, KEY), network, labels)


def test_a_function_whose_numbers_change_is_read_again():
    scale = {"value": 1.0}

    def network(x):
        return x.reshape(len(x), -1)[:, :3] * scale["value"]

    labels = network(IMAGES).argmax(-1)
    for value in (1.0, -1.0):
        scale["value"] = value
        found = ATTACKS["pgd"](network, IMAGES, labels, KEY)
        assert_about(found, network, labels)


def test_a_network_outside_of_jax_is_not_mistaken_for_another():
    for seed in (0, 1):
        weights = np.random.default_rng(seed).normal(size=(16, 3)).astype(np.float32)
        result = jax.ShapeDtypeStruct((len(IMAGES), 3), jnp.float32)

        def outside(x, weights=weights):
            return np.asarray(x).reshape(len(x), -1) @ weights

        def network(x, outside=outside, result=result):
            return jax.pure_callback(outside, result, x)

        labels = network(IMAGES).argmax(-1)
        assert_about(ATTACKS["pixle"](network, IMAGES, labels, KEY), network, labels)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: lambda x: m(x)])
def test_a_model_in_training_mode_is_told_to_be_in_evaluation_mode(attack, wrap):
    model = Classifier(0)
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        attack(wrap(model), IMAGES, jnp.zeros(6, int), KEY)
    model.eval()
    attack(wrap(model), IMAGES, jnp.zeros(6, int), KEY)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_vmap_over_networks_is_the_attack_of_each(attack):
    models = [classifier(seed) for seed in (0, 1)]
    graph, _ = nnx.split(models[0])
    states = jax.tree.map(lambda *s: jnp.stack(s), *[nnx.state(m) for m in models])
    labels = models[0](IMAGES).argmax(-1)

    @jax.jit
    @jax.vmap
    def together(state):
        return attack(lambda x: nnx.merge(graph, state)(x), IMAGES, labels, KEY)

    found = together(states)
    for i, model in enumerate(models):
        alone = attack(model, IMAGES, labels, KEY)
        np.testing.assert_allclose(found.images[i], alone.images, atol=1e-6)
        np.testing.assert_array_equal(found.fooled[i], alone.fooled)
