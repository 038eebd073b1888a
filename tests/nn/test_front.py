"""Convolutions before an equilibrium layer, and their bounds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ibnn_jax

FRONT = partial(ibnn_jax.ConvolutionalFront, channels=(4, 5))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def images(rng):
    return jnp.asarray(rng.uniform(size=(50, 13, 10, 2)), jnp.float32)


def test_the_first_convolution_is_that_of_jax(images):
    front = ibnn_jax.ConvolutionalFront((13, 10, 2), (4,), rngs=nnx.Rngs(0))
    kernel = front.convolutions[0].kernel[...]
    # Rows of the kernel: which of 2 x 2 blocks, which of its 2 x 2 pixels, channel.
    kernel = kernel.reshape(2, 2, 2, 2, 2, 4).transpose(0, 2, 1, 3, 4, 5)
    same = jax.lax.conv_general_dilated(
        images,
        kernel.reshape(4, 4, 2, 4),
        (2, 2),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    assert front.features == same[0].size
    found = front(images)
    np.testing.assert_allclose(found, nnx.relu(same).reshape(50, -1), atol=1e-5)


def test_bounds_through_the_front_hold(rng, images):
    layer = partial(ibnn_jax.NEMON, gamma=0.5)
    model = ibnn_jax.EquilibriumClassifier(
        (13, 10, 2), 3, features=6, layer=layer, front=FRONT, rngs=nnx.Rngs(0)
    )
    labels, eps = model(images).argmax(1), 0.005
    certified = model.certified(images, labels, eps)
    assert 0 < certified.mean() < 1
    margins = model.margins(images, labels, eps)
    lo, hi = model.front.interval(images - eps, images + eps)
    for _ in range(30):
        step = eps * rng.choice([-1.0, 1.0], size=images.shape).astype("f4")
        x = model.front(images + step)
        assert (lo <= x + 1e-5).all() and (x <= hi + 1e-5).all()
        y = model(jnp.clip(images + step, 0, 1))
        assert (y.argmax(1) == labels)[certified].all()
        own = jnp.take_along_axis(y, labels[:, None], 1)
        assert (margins <= own - y + 1e-4).all()
        change = jnp.abs(model(images + step) - model(images)).max() / eps
        assert change <= model.lipschitz()[1] <= model.lipschitz()[0]
    assert model.regulariser() >= model.lipschitz()[0]


def test_every_kernel_learns_from_the_margins(rng, images):
    model = ibnn_jax.EquilibriumClassifier(
        (13, 10, 2), 3, features=6, front=FRONT, rngs=nnx.Rngs(0)
    )
    labels = jnp.asarray(rng.integers(0, 3, 50))
    gradient = nnx.grad(lambda model: model.margins(images, labels, 0.05).sum())(model)
    for leaf in jax.tree.leaves(gradient["front"]):
        assert jnp.isfinite(leaf).all() and (leaf != 0).any()


@pytest.mark.parametrize(
    "shape, message",
    [((28, 28), "rows, columns and channels"), ((9, 28, 1), "leave nothing")],
)
def test_images_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        FRONT(shape, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "channels, message",
    [((), "at least one size"), (16, "at least one size"), ((4, 0), "at least 1")],
)
def test_channels_that_are_no_sizes_are_refused(channels, message):
    with pytest.raises(ValueError, match=message):
        ibnn_jax.ConvolutionalFront((13, 10, 2), channels, rngs=nnx.Rngs(0))
