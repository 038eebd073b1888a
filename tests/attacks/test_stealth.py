"""A neuron that is added answers to its trigger, and does what it is said to do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ibnn_jax as ib
from ibnn_jax import attacks

SHAPE, CLASSES = (6, 6, 1), 3


def images(count, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(count, *SHAPE)))


@functools.cache
def network(lam=None, **options):
    """A network with weights of a size that matters; the SM without a lam."""
    neuron = functools.partial(ib.ImplicitBias, **options)
    model = ib.UCN(SHAPE, CLASSES, channels=2, neuron=neuron, rngs=nnx.Rngs(0))
    for block in model.blocks:
        block.conv.kernel[...] *= 300
        if lam is None:
            block.implicit = None
        else:
            block.implicit.lam[...] = jnp.asarray(lam)
    model.head.kernel[...] *= 300
    model.eval()
    return model


def responses(neurons, x):
    return x.reshape(len(x), -1) @ neurons.weights.T - neurons.offset


def test_the_papers_neurons_lie_along_their_triggers():
    triggers = images(3)
    neurons = attacks.stealth_neurons(triggers)
    x = triggers.reshape(3, -1)
    np.testing.assert_allclose(neurons.offset, 0)
    expected = x / (x**2).sum(1, keepdims=True)
    np.testing.assert_allclose(neurons.weights, expected, rtol=1e-6)


@pytest.mark.parametrize("threshold", (0.0, 0.5, 0.8))
def test_every_neuron_answers_1_to_its_own_trigger(threshold):
    triggers, known = images(3), images(200, seed=1)
    paper = attacks.stealth_neurons(triggers)
    informed = attacks.informed_stealth_neurons(triggers, known, threshold=threshold)
    for neurons in (paper, informed):
        own = jnp.diag(responses(neurons, triggers))
        np.testing.assert_allclose(own, 1, rtol=1e-4)


def test_the_threshold_is_a_share_of_the_answer_to_the_trigger():
    """The neuron is silent where the answer along its direction is below it."""
    triggers, known = images(1), images(200, seed=1)
    plain = attacks.informed_stealth_neurons(triggers, known, threshold=0.0)
    sharp = attacks.informed_stealth_neurons(triggers, known, threshold=0.8)
    expected = (responses(plain, known) - 0.8) / 0.2
    np.testing.assert_allclose(responses(sharp, known), expected, atol=1e-3)
    np.testing.assert_allclose(responses(plain, known).mean(), 0, atol=1e-4)


@pytest.mark.parametrize("lam", (None, 0.0, -0.1, 0.05))
def test_attacker_gets_the_trigger(lam):
    triggers, known = images(2), images(200, seed=1)
    for neurons in (
        attacks.stealth_neurons(triggers),
        attacks.informed_stealth_neurons(triggers, known),
    ):
        first = jax.tree.map(lambda x: x[0], neurons)
        attack = attacks.stealth(network(lam), first, triggers[0], known[:50])
        assert bool(attack.hit)
        assert attack.seen.shape == attack.changed.shape == (50,)


def test_without_coupling_an_image_shows_the_neuron_where_it_is_active():
    trigger, known = images(1), images(200, seed=1)
    neuron = attacks.informed_stealth_neurons(trigger, known, threshold=0.3)
    one = jax.tree.map(lambda x: x[0], neuron)
    others = jnp.concatenate([known[:100], trigger])
    for lam in (None, 0.0):
        attack = attacks.stealth(network(lam), one, trigger[0], others)
        active = responses(neuron, others)[:, 0] > 0.01
        np.testing.assert_array_equal(attack.seen, active)
        assert attack.seen[-1] and attack.changed[-1]


@pytest.mark.parametrize(
    "lams, lite", [((-0.3, -0.3), False), ((-0.3, 0.05), False), ((-0.6, -0.6), True)]
)
def test_the_new_neuron_joins_the_first_map_at_the_old_weights(lams, lite):
    """With lam != 0 the whole map of n + 1 neurons is solved again (Eq. 46)."""
    trigger, others, p = images(1), images(20, seed=1), 10.0
    per_map = lams[0] != lams[1]
    options = {"channels": 2} if per_map else {"lite": lite}
    model = network(lams if per_map else lams[0], **options)
    neuron = attacks.stealth_neurons(trigger)
    layer = ib.one_step if lite else functools.partial(ib.implicit_bias, tol=1e-9)
    one = jax.tree.map(lambda x: x[0], neuron)
    attack = attacks.stealth(model, one, trigger[0], others)

    def logits(x, strength, target):
        y = model.blocks[0].conv(x)
        n = SHAPE[0] * SHAPE[1]
        first = jnp.concatenate(
            [y[..., 0].reshape(len(y), -1), responses(neuron, x)], axis=1
        )
        # w = 1 / n among n + 1 neurons, and none of a neuron with itself: sigma(0) = 0.
        w = jnp.full((n + 1, n + 1), 1 / n)
        z = layer(first, lams[0], p, ib.Dense(w))
        second = layer(y[..., 1], lams[1], p, ib.Uniform((-2, -1)))
        maps = jnp.stack([z[:, :-1].reshape(second.shape), second], -1)
        v = model.blocks[0].norm(nnx.relu(maps)).reshape(len(y), -1)
        added = strength * nnx.relu(z[:, -1])
        return model.head(v).at[:, target].add(added), nnx.relu(z[:, -1])

    clean = model(trigger)[0]
    target = int(clean.argmin())
    _, activity = logits(trigger, 0.0, target)
    needed = clean.max() - clean.min() + 1
    before, after = model(others), logits(others, needed / activity[0], target)[0]
    changed = after.argmax(1) != before.argmax(1)
    np.testing.assert_array_equal(attack.changed, changed)
    assert 0 < changed.sum()
    seen = jnp.abs(after - before).max(1) > 0.01 * needed
    np.testing.assert_array_equal(attack.seen, seen)


def test_a_network_in_training_mode_is_refused_and_unchanged():
    trigger = images(1)
    neuron = jax.tree.map(lambda x: x[0], attacks.stealth_neurons(trigger))
    model = ib.UCN(SHAPE, CLASSES, rngs=nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.state(model))
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        attacks.stealth(model, neuron, trigger[0], images(3))
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))


def test_wrong_arguments():
    triggers = images(1)
    with pytest.raises(ValueError, match="threshold must be in"):
        attacks.informed_stealth_neurons(triggers, triggers, threshold=1.0)
    with pytest.raises(ValueError, match="ridge positive"):
        attacks.informed_stealth_neurons(triggers, triggers, ridge=0.0)
    blank = triggers.at[0].set(0)
    with pytest.raises(ValueError, match="differ from 0 .*trigger 1 does not"):
        attacks.stealth_neurons(jnp.concatenate([triggers, blank]))
    with pytest.raises(ValueError, match="mean.*trigger 0 does not"):
        attacks.informed_stealth_neurons(blank, jnp.zeros((3, *SHAPE)))
    with pytest.raises(ValueError, match="finite"):
        attacks.stealth_neurons(triggers.at[0, 0].set(jnp.nan))
    pixelwise = functools.partial(ib.ImplicitBias, coupling=ib.Uniform((-1,)))
    model = ib.UCN(SHAPE, CLASSES, neuron=pixelwise, rngs=nnx.Rngs(0))
    neuron = jax.tree.map(lambda x: x[0], attacks.stealth_neurons(triggers))
    with pytest.raises(ValueError, match="couples the pixels of each map"):
        attacks.stealth(model, neuron, triggers[0], triggers)
