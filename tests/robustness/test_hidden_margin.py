"""Hidden margins are exact distances, and the Jacobian's norm is the Jacobian's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ibnn_jax as ib
from ibnn_jax import robustness

SHAPE, CLASSES = (5, 5, 1), 4


def network(layers=1):
    model = ib.UCN(
        SHAPE, CLASSES, layers=layers, channels=2, neuron=None, rngs=nnx.Rngs(0)
    )
    for block in model.blocks:
        block.conv.kernel[...] *= 300
        block.norm.var[...] = jnp.array([0.3, 2.0])
        block.norm.mean[...] = jnp.array([0.1, -0.2])
    model.head.kernel[...] *= 300
    model.eval()
    return model


def images(count):
    return jnp.asarray(np.random.default_rng(0).uniform(size=(count, *SHAPE)))


def scores(model, v):
    """Logits of activations v [..., H, W, C], before batch norm."""
    normed = model.blocks[0].norm(v)
    return model.head(normed.reshape(len(v), -1))


def test_moving_the_activations_by_the_margin_reaches_another_class():
    model, x = network(), images(20)
    labels = model(x).argmax(-1)
    margins = robustness.hidden_margins(model, x, labels)
    assert (margins > 0).all()
    v = nnx.relu(model.blocks[0].conv(x))
    for i in range(5):

        def lead(v, j, label=labels[i]):
            values = scores(model, v[None])[0]
            return values[label] - values[j]

        others = [j for j in range(CLASSES) if j != labels[i]]
        gradients = [jax.grad(lead)(v[i], j) for j in others]
        # A linear function f falls by |grad f| per unit of distance.
        distances = [
            lead(v[i], j) / jnp.linalg.norm(g) for j, g in zip(others, gradients)
        ]
        np.testing.assert_allclose(margins[i], min(distances), rtol=1e-4)
        nearest = int(np.argmin(distances))
        unit = gradients[nearest] / jnp.linalg.norm(gradients[nearest])
        np.testing.assert_allclose(
            lead(v[i] - margins[i] * unit, others[nearest]), 0, atol=1e-4
        )


def test_a_wrong_label_has_a_negative_margin():
    model, x = network(), images(10)
    wrong = (model(x).argmax(-1) + 1) % CLASSES
    assert (robustness.hidden_margins(model, x, wrong) < 0).all()


def test_margins_are_of_one_hidden_layer():
    with pytest.raises(ValueError, match="one hidden layer; this one has 2"):
        robustness.hidden_margins(network(layers=2), images(1), jnp.zeros(1, int))


def test_a_network_in_training_mode_is_refused_and_unchanged():
    model = network()
    model.train()
    before = jax.tree.map(jnp.copy, nnx.state(model))
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        robustness.hidden_margins(model, images(3), jnp.zeros(3, int))
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))


@pytest.mark.parametrize("batch_size", (1, 3, 20))
def test_jacobian_norm(batch_size):
    model, x = network(), images(5)
    norms = robustness.input_jacobian_norm(model, x, batch_size=batch_size)
    for image, norm in zip(x, norms):
        jacobian = jax.jacobian(lambda x: model(x[None])[0])(image)
        np.testing.assert_allclose(norm, jnp.linalg.norm(jacobian), rtol=1e-5)


def test_jacobian_norm_needs_a_batch():
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        robustness.input_jacobian_norm(network(), images(1), batch_size=0)


def test_labels_are_classes_one_per_image():
    model, x = network(), images(4)
    for labels in (jnp.zeros(1, int), [0, 1, 2, 0], jnp.full(4, -1), jnp.full(4, 7)):
        with pytest.raises(ValueError, match="labels must be"):
            robustness.hidden_margins(model, x, labels)
    margins = jax.jit(lambda labels: robustness.hidden_margins(model, x, labels))
    found = jnp.isnan(margins(jnp.array([0, 7, -1, 1])))
    assert found.tolist() == [False, True, True, False]
