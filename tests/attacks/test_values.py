"""Attacks on values off the beaten path: unknown, half precision, empty, strict."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibnn_jax.attacks import pgd, pixle

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(jax.random.key(2), (8, 4, 4, 1), jnp.float32)
WEIGHTS = jax.random.normal(jax.random.key(1), (16, 3))
ATTACKS = {
    "linf": partial(pgd, eps=0.1, steps=4),
    "l2": partial(pgd, eps=0.3, steps=4, norm="l2"),
    "similarity": partial(pixle, patch=(2, 2), restarts=2),
    "random": partial(pixle, patch=(2, 2), restarts=2, mapping="random"),
}


def linear(x):
    return x.reshape(len(x), -1) @ WEIGHTS.astype(x.dtype)


LABELS = linear(IMAGES).argmax(-1)
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


def size(change, norm):
    change = change.reshape(len(change), -1)
    return jnp.abs(change).max(1) if norm == "linf" else jnp.linalg.norm(change, axis=1)


@pytest.mark.parametrize("scale", [255.0, 1.2])
@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("norm, eps", [("linf", 0.05), ("l2", 0.4)])
def test_unknown_images_outside_of_the_bounds_stay_in_their_ball(
    norm, eps, random_start, scale
):
    images = (IMAGES.astype(float) - 0.5) * scale + 0.5

    @jax.jit
    def attack(images):
        return pgd(
            linear,
            images,
            LABELS,
            KEY,
            eps=eps,
            norm=norm,
            random_start=random_start,
        ).images

    found = attack(images)
    assert (size(found - images, norm) <= eps * (1 + 1e-9)).all()
    # No pixel is further outside than it was, and as few as the ball allows.
    inside = jnp.clip(images, 0, 1)
    assert (jnp.abs(found - jnp.clip(found, 0, 1)) <= jnp.abs(images - inside)).all()
    near = size(inside - images, norm) <= eps
    changed = (found != images).any((1, 2, 3))
    assert changed.any() or scale == 255  # far outside no change there is worse
    used = near & changed
    np.testing.assert_allclose(found[used], jnp.clip(found[used], 0, 1), atol=1e-9)


@pytest.mark.parametrize(
    "name, dtype",
    [("linf", jnp.int64), ("l2", jnp.uint8), ("similarity", jnp.int32)],
)
def test_unknown_labels_that_are_no_class_give_nan_and_fool_nobody(name, dtype):
    attack = ATTACKS[name]
    wrong = 2**32 + 1 if dtype == jnp.int64 else 200
    labels = LABELS.astype(dtype).at[jnp.array([2, 5])].set(wrong)
    found = jax.jit(lambda labels: attack(linear, IMAGES, labels, KEY))(labels)
    outside = labels == wrong
    np.testing.assert_array_equal(jnp.isnan(found.loss), outside)
    assert not found.fooled[outside].any() and found.fooled[~outside].any()
    np.testing.assert_array_equal(found.images[outside], IMAGES[outside])
    # The other images do not notice.
    alone = attack(linear, IMAGES, LABELS, KEY)
    np.testing.assert_array_equal(found.images[~outside], alone.images[~outside])


@pytest.mark.parametrize("eps", [jnp.nan, -0.5])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_unknown_eps_that_is_no_radius_leaves_the_images(norm, eps):
    attack = jax.jit(lambda eps: pgd(linear, IMAGES, LABELS, KEY, eps=eps, norm=norm))
    found = attack(eps)
    np.testing.assert_array_equal(found.images, IMAGES)
    assert not found.fooled.any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16])
@every_attack
def test_images_keep_their_dtype(attack, dtype):
    images = IMAGES.astype(dtype)
    labels = linear(images).argmax(-1)
    found = attack(linear, images, labels, KEY)
    assert found.images.dtype == found.loss.dtype == dtype
    assert found.images.shape == images.shape


@pytest.mark.parametrize("image_dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("number", [jnp.float64, jnp.float32, np.int64])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_strongly_typed_sizes_do_not_change_the_dtype(norm, number, image_dtype):
    images = IMAGES.astype(image_dtype)

    def attack(size):
        return pgd(linear, images, LABELS, KEY, eps=size, step_size=size, norm=norm)

    assert attack(number(1)).images.dtype == image_dtype
    assert jax.eval_shape(attack, number(1)).images.dtype == image_dtype


@every_attack
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_no_images_give_an_empty_result(attack, wrap):
    run = wrap(lambda images, labels: attack(linear, images, labels, KEY))
    found = run(IMAGES[:0], LABELS[:0])
    assert found.images.shape == (0, 4, 4, 1) and found.images.dtype == jnp.float32
    assert found.loss.shape == found.fooled.shape == (0,)
    assert found.fooled.dtype == bool


@every_attack
def test_they_hold_where_ranks_and_dtypes_must_be_promoted_explicitly(attack):
    expected = attack(linear, IMAGES, LABELS, KEY)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        found = attack(linear, IMAGES, LABELS, KEY)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_bounds_may_differ_by_channel(norm):
    """Standardised images: bounds met only up to rounding."""
    mean, std = np.array([0.2, 0.5]), np.array([0.3, 0.1])
    raw = np.array(jax.random.uniform(KEY, (8, 4, 2, 2)))
    raw[0], raw[1] = 0, 1
    images = jnp.asarray((raw - mean) / std, jnp.float32)
    bounds = (0 - mean) / std, (1 - mean) / std
    attack = partial(pgd, linear, images, LABELS, KEY, eps=3.0, norm=norm)
    with jax.numpy_rank_promotion("raise"):
        found = attack(bounds=bounds).images
    assert (found >= bounds[0] - 1e-5).all() and (found <= bounds[1] + 1e-5).all()
    assert (size(found - images, norm) <= 3.0 * (1 + 1e-5)).all()
    with pytest.raises(ValueError, match="images must be within bounds"):
        attack(bounds=(bounds[0], bounds[1] - 0.1))


def test_numpy_images_labels_and_bounds_are_taken():
    images, labels = np.asarray(IMAGES), np.asarray(LABELS, np.uint8)
    bounds = np.array([0.0, 1.0])
    found = pgd(linear, images, labels, KEY, eps=np.float32(0.1), bounds=bounds)
    expected = pgd(linear, IMAGES, LABELS, KEY, eps=0.1)
    np.testing.assert_array_equal(found.images, expected.images)
    old_key = jax.random.PRNGKey(0)
    assert pixle(linear, images, labels, old_key).images.shape == IMAGES.shape
