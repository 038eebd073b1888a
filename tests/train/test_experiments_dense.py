"""The small networks of the NEMON experiments: training, intervals, bounds."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ibnn_jax
from train.experiments.harness.dense import Explicit, fit


def classifier(rngs):
    return ibnn_jax.EquilibriumClassifier(
        (4,), 3, features=12, layer=Explicit, rngs=rngs
    )


def test_explicit_has_as_many_parameters_as_nemon():
    def count(layer):
        return sum(x.size for x in jax.tree.leaves(nnx.state(layer)))

    rngs = nnx.Rngs(0)
    assert count(Explicit(7, 5, rngs=rngs)) == count(ibnn_jax.NEMON(7, 5, rngs=rngs))


def test_bounds_of_explicit_hold():
    rng, layer = np.random.default_rng(0), Explicit(6, 5, rngs=nnx.Rngs(0))
    C = jnp.asarray(rng.normal(size=(3, 5)))
    norms, componentwise = layer.lipschitz(C)
    assert componentwise <= norms
    x = rng.normal(size=(2000, 6))
    change = rng.uniform(-0.1, 0.1, x.shape)
    moved = jnp.abs((layer(x + change) - layer(x)) @ C.T).max(1)
    assert (moved <= 1.0001 * componentwise * np.abs(change).max(1)).all()
    lo, hi = layer.interval(x - 0.1, x + 0.1)
    v = layer(x + change)
    assert (lo <= v + 1e-6).all() and (v <= hi + 1e-6).all()


def test_fit_trains_every_seed_by_itself():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(60, 4)), jnp.float32)
    labels = jnp.asarray(x[:, :3].argmax(1))
    seen = []

    def loss(model, x, labels, progress):
        logits = jax.nn.log_softmax(model(x))
        return -jnp.take_along_axis(logits, labels[:, None], 1).mean()

    def train(seeds):
        return fit(
            classifier,
            loss,
            x,
            labels,
            seeds=seeds,
            epochs=40,
            batch_size=16,
            rate=3e-2,
            on_epoch=seen.append,
        )

    two, three = train(2), train(3)
    assert seen == [*range(1, 41)] * 2
    right = three.each(lambda model, seed, x, y: model(x).argmax(-1) == y, x, labels)
    assert (right.mean(1) > 0.85).all()
    first, again = (ensemble.each(_logits, x) for ensemble in (two, three))
    np.testing.assert_allclose(first, again[:2], atol=1e-4)
    assert not np.allclose(again[0], again[2], atol=0.1)


def _logits(model, seed, x):
    return model(x)
