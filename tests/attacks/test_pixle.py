"""Pixle beside a plain loop where nothing is random, its budget and its success."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibnn_jax.attacks import pixle

IMAGES = jax.random.uniform(jax.random.key(2), (40, 5, 6, 2))
WEIGHTS = jax.random.normal(jax.random.key(1), (60, 3))


def linear(x, weights=WEIGHTS):
    return x.reshape(len(x), -1) @ weights


LABELS = linear(IMAGES).argmax(-1)
KEY = jax.random.key(0)


def changed(found, images):
    """Number of pixels of every image that are not the clean ones."""
    return (found.images != images).any(-1).sum((1, 2))


def assert_same(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), a, b)


def most_similar(image, transposed=False):
    """The candidate whose patch is the whole image, pixel by pixel."""
    height, width = image.shape[:2]
    pixels = np.asarray(image).reshape(-1, image.shape[-1])
    result = pixels.copy()
    for s, value in enumerate(pixels):
        similarity = 1 / (1 + np.abs(pixels - value).mean(-1))
        similarity[s] = 0
        row, column = divmod(similarity.argmax(), width)
        result[column * height + row if transposed else row * width + column] = value
    return result.reshape(image.shape)


@pytest.mark.parametrize("transposed", [False, True])
def test_similarity_copies_every_pixel_of_the_patch_to_the_most_similar_one(transposed):
    images, mapping = (
        (IMAGES[:, :, :5], "similarity_transposed")
        if transposed
        else (IMAGES, "similarity")
    )

    def any_change_is_worse(x):
        distance = jnp.abs(x - images).sum((1, 2, 3))
        return jnp.stack([jnp.zeros(len(x)), distance], -1)

    options = {
        "restarts": 1,
        "iterations": 1,
        "patch": images.shape[1:3],
        "mapping": mapping,
    }
    found = pixle(
        any_change_is_worse, images, jnp.zeros(len(images), int), KEY, **options
    )
    np.testing.assert_array_equal(
        found.images, [most_similar(image, transposed) for image in images]
    )
    np.testing.assert_array_equal(found.queries, 2)


def test_equal_pixels_are_not_destinations_and_a_constant_image_stays():
    two_values = (
        jnp.zeros((1, 3, 3, 1)).at[0, 2, 2].set(1.0)
    )  # wherever it lies, a patch of zeros can only delete the 1
    found = pixle(
        lambda x: jnp.stack([x.sum((1, 2, 3)), 0 * x[:, 0, 0, 0]], -1),
        two_values,
        jnp.array([0]),
        KEY,
        patch=(1, 1),
    )
    assert float(found.images.sum()) == 0
    constant = jnp.full((2, 3, 3, 1), 0.5)
    found = pixle(
        lambda x: x.reshape(2, 9)[:, :2], constant, jnp.array([0, 0]), KEY, patch=(2, 2)
    )
    np.testing.assert_array_equal(found.images, constant)


@pytest.mark.parametrize("mapping, channels", [("similarity", 1), ("random", 4)])
def test_few_pixels_change_and_only_to_values_of_the_image(mapping, channels):
    images = jax.random.uniform(jax.random.key(3), (20, 5, 6, channels))
    weights = jax.random.normal(jax.random.key(4), (30 * channels, 3))

    def network(x):
        return linear(x, weights)

    labels = network(images).argmax(-1)
    for restarts, patch in ((1, (1, 1)), (1, (2, 3)), (3, (2, 2))):
        found = pixle(
            network,
            images,
            labels,
            KEY,
            restarts=restarts,
            patch=patch,
            mapping=mapping,
        )
        assert 0 < changed(found, images).max() <= restarts * patch[0] * patch[1]
        for before, after in zip(images, found.images):
            values = {
                tuple(pixel) for pixel in np.asarray(before).reshape(-1, channels)
            }
            assert {
                tuple(pixel) for pixel in np.asarray(after).reshape(-1, channels)
            } <= values
        np.testing.assert_array_equal(
            network(found.images).argmax(-1) != labels, found.fooled
        )
        assert (
            found.queries.max() <= 1 + 5 * restarts
            and (found.queries[~found.fooled] == 1 + 5 * restarts).all()
        )


@pytest.mark.parametrize("mapping", ["similarity", "random"])
def test_more_restarts_never_help_the_network(mapping):
    few, more, many = (
        pixle(linear, IMAGES, LABELS, KEY, restarts=r, patch=(2, 2), mapping=mapping)
        for r in (1, 4, 16)
    )
    for a, b in ((few, more), (more, many)):
        assert (b.fooled >= a.fooled).all() and b.fooled.sum() > a.fooled.sum()
        assert (b.loss >= a.loss).all()
        np.testing.assert_array_equal(
            b.images[a.fooled], a.images[a.fooled]
        )  # it stops there
        np.testing.assert_array_equal(b.queries[a.fooled], a.queries[a.fooled])


def test_jit_and_vmap_over_networks_and_keys_are_the_sequential_attack():
    def attack(weights, key):
        return pixle(lambda x: linear(x, weights), IMAGES, LABELS, key, restarts=3)

    weights, keys = (
        jnp.stack([WEIGHTS, -WEIGHTS, 0.1 * WEIGHTS]),
        jax.random.split(KEY, 3),
    )
    sequential = [attack(w, k) for w, k in zip(weights, keys)]
    assert_same(sequential[0], attack(weights[0], keys[0]))
    assert_same(sequential[0], jax.jit(attack)(weights[0], keys[0]))
    assert_same(
        jax.tree.map(lambda *a: jnp.stack(a), *sequential),
        jax.jit(jax.vmap(attack))(weights, keys),
    )
    assert (sequential[0].images != sequential[2].images).any()


def test_misclassified_images_stay_and_broken_networks_are_not_fooled():
    wrong = (LABELS + 1) % 3
    found = pixle(linear, IMAGES, wrong, KEY)
    np.testing.assert_array_equal(found.images, IMAGES)
    assert found.fooled.all() and (found.queries == 1).all()
    broken = pixle(lambda x: linear(x) * jnp.nan, IMAGES, wrong, KEY)
    np.testing.assert_array_equal(broken.images, IMAGES)
    assert not broken.fooled.any()
    # Non-finite for every version but the clean one, which is right.
    brittle = pixle(
        lambda x: jnp.where((x == IMAGES).all((1, 2, 3))[:, None], linear(x), jnp.inf),
        IMAGES,
        LABELS,
        KEY,
    )
    np.testing.assert_array_equal(brittle.images, IMAGES)
    assert not brittle.fooled.any() and jnp.isfinite(brittle.loss).all()


def test_success_rises_with_the_budget_on_digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = jnp.asarray(data.images[..., None] / 16), jnp.asarray(data.target)
    x, y = images.reshape(len(images), -1), jax.nn.one_hot(labels, 10) - 0.1
    weights = jnp.linalg.solve(x.T @ x + jnp.eye(64), x.T @ y)  # ridge regression

    def network(x):
        return 10 * linear(x, weights)

    images, labels = images[:200], labels[:200]
    clean = (network(images).argmax(-1) != labels).mean()
    assert clean < 0.1
    for mapping, least in (("similarity", 0.05), ("random", 0.5)):
        rates = [
            pixle(
                network, images, labels, KEY, restarts=r, mapping=mapping
            ).fooled.mean()
            - clean
            for r in (1, 10)
        ]
        assert rates[1] > rates[0] >= 0 and rates[1] > least
