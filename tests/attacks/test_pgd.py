"""PGD on functions whose worst change is known, and on small networks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibnn_jax.attacks import pgd
from ibnn_jax.attacks.ball import L2, Linf

WEIGHTS = jax.random.normal(jax.random.key(1), (12, 3))


def linear(x):
    return x.reshape(len(x), -1) @ WEIGHTS


@pytest.fixture
def case():
    images = jax.random.uniform(
        jax.random.key(2), (50, 3, 4, 1), minval=0.2, maxval=0.8
    )
    return images, linear(images).argmax(-1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_budget_and_the_pixel_range_are_kept(case, norm):
    images, labels = case
    found = jax.jit(
        lambda key: pgd(linear, images, labels, key, eps=0.3, norm=norm, restarts=2)
    )(jax.random.key(0))
    change = (found.images - images).reshape(len(images), -1)
    size = jnp.abs(change).max(1) if norm == "linf" else jnp.linalg.norm(change, axis=1)
    assert float(size.max()) <= 0.3 * (1 + 1e-5)
    assert float(found.images.min()) >= 0 and float(found.images.max()) <= 1
    assert found.fooled.mean() > 0.3
    np.testing.assert_array_equal(
        linear(found.images).argmax(-1) != labels, found.fooled
    )


def test_no_compiled_program_of_one_norm_passes_for_the_other(case):
    """JAX compares registered classes by their fields."""
    images, _ = case
    linf, l2 = (ball(images, jnp.ones(()), images, images) for ball in (Linf, L2))
    assert jax.tree.structure(linf) != jax.tree.structure(l2)


def test_it_finds_the_worst_change_of_a_two_class_linear_network(case):
    images, _ = case

    def two(x):
        return linear(x)[:, :2]

    labels = two(images).argmax(-1)
    found = pgd(two, images, labels, jax.random.key(0), eps=0.05)
    towards = jnp.where(labels[:, None] == 0, 1, -1) * jnp.sign(
        WEIGHTS[:, 1] - WEIGHTS[:, 0]
    )
    np.testing.assert_allclose(
        found.images, images + 0.05 * towards.reshape(images.shape), atol=1e-6
    )


def test_it_is_deterministic_and_stronger_with_more_budget(case):
    images, labels = case
    attack = jax.jit(lambda key, eps: pgd(linear, images, labels, key, eps=eps))
    one, two = attack(jax.random.key(0), 0.1), attack(jax.random.key(0), 0.1)
    np.testing.assert_array_equal(one.images, two.images)
    fooled = jax.vmap(attack, (None, 0))(
        jax.random.key(0), jnp.array([0.0, 0.05, 0.1, 0.2])
    ).fooled.mean(1)
    assert fooled[0] == 0 and (jnp.diff(fooled) >= 0).all() and fooled[-1] > 0.5


def test_restarts_and_surrogates(case):
    images, labels = case
    one, many = (
        pgd(
            linear,
            images,
            labels,
            jax.random.key(3),
            eps=0.08,
            steps=1,
            step_size=0.01,
            restarts=r,
        )
        for r in (1, 8)
    )
    assert (many.fooled.sum() >= one.fooled.sum()) and float(many.loss.sum()) >= float(
        one.loss.sum()
    )
    constant = pgd(
        lambda x: 0 * linear(x),
        images,
        labels,
        jax.random.key(3),
        eps=0.0,
        target=linear,
    )
    np.testing.assert_array_equal(constant.images, images)
    assert not constant.fooled.any()


def test_the_gradient_goes_through_the_implicit_layer(case):
    from flax import nnx

    import ibnn_jax

    model = ibnn_jax.UCN(
        (3, 4, 1),
        3,
        neuron=partial(ibnn_jax.ImplicitBias, lam=-0.5),
        kernel_size=3,
        rngs=nnx.Rngs(0),
    )
    for block in model.blocks:
        block.conv.kernel[...] *= 500
    model.head.kernel[...] *= 500
    model.eval()
    images, labels = case
    before = model(images)
    labels = before.argmax(-1)
    found = pgd(model, images, labels, jax.random.key(0), eps=0.1)
    assert jnp.isfinite(found.loss).all() and float(found.loss.mean()) > float(
        -jax.nn.log_softmax(before).max(-1).mean()
    )


@pytest.mark.parametrize(
    "norm, attack, eps", [("linf", "LinfPGD", 0.05), ("l2", "L2PGD", 0.3)]
)
def test_it_is_the_attack_of_foolbox(norm, attack, eps):
    foolbox = pytest.importorskip(
        "foolbox", reason="it needs pip install '.[attacks-check]'"
    )
    keys = jax.random.split(jax.random.key(5), 3)
    into, out = (
        jax.random.normal(keys[0], (12, 16)),
        jax.random.normal(keys[1], (16, 3)),
    )

    def network(x):
        return jnp.tanh(x.reshape(len(x), -1) @ into) @ out

    images = jax.random.uniform(
        keys[2], (50, 3, 4, 1)
    )  # up to the ends of the pixel range: both projections are at work
    labels = network(images).argmax(-1)
    steps, step_size = 20, 0.15 * eps
    theirs = getattr(foolbox.attacks, attack)(
        abs_stepsize=step_size, steps=steps, random_start=False
    )
    expected, _, fooled = theirs(
        foolbox.JAXModel(network, bounds=(0, 1)), images, labels, epsilons=eps
    )
    found = pgd(
        network,
        images,
        labels,
        jax.random.key(0),
        eps=eps,
        steps=steps,
        step_size=step_size,
        norm=norm,
        random_start=False,
    )
    assert 0.1 < fooled.mean() < 1 and (expected != images).any((1, 2, 3)).all()
    np.testing.assert_allclose(found.images, expected, atol=1e-9)
    np.testing.assert_array_equal(found.fooled, fooled)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_the_direction_of_l2_is_a_unit_whatever_the_gradient(dtype):
    """That of a confident network has squares below the range of its dtype."""
    centre = jnp.full((3, 20_000), 0.5, dtype)
    ball = L2(
        centre, jnp.ones((), dtype), jnp.zeros_like(centre), jnp.ones_like(centre)
    )
    gradient = jnp.stack(
        [jnp.full(20_000, x, dtype) for x in (0, 10 * jnp.finfo(dtype).tiny, 1e3)]
    )
    found = ball.direction(gradient).astype(jnp.float32)
    np.testing.assert_allclose(jnp.linalg.norm(found, axis=1), [0, 1, 1], rtol=5e-3)
    np.testing.assert_array_equal(ball.project(centre), centre)
    change = (ball.sample(jax.random.key(0)) - centre).astype(jnp.float32)
    assert float(jnp.abs(jnp.linalg.norm(change, axis=1) - 1).max()) < 0.2


def test_l2_fools_a_network_no_less_for_being_confident(case):
    images, labels = case
    fooled = [
        pgd(
            lambda x, s=scale: s * linear(x), images, labels, jax.random.key(0),
            eps=0.5, norm="l2", random_start=False,
        ).fooled.mean()
        for scale in (1, 30)
    ]  # fmt: skip
    assert float(fooled[1]) == pytest.approx(float(fooled[0]), abs=0.05)
