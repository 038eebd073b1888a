"""The Flax modules: shapes, parameters, constraints, warnings, the twin and the
transfer of its weights.
"""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ibnn_jax as ib

IMAGES = jnp.asarray(np.random.default_rng(0).random((4, 8, 8, 1)), jnp.float32)


def count(model, kind=nnx.Param):
    return sum(x.size for x in jax.tree.leaves(nnx.state(model, kind)))


def test_the_layer_solves_the_equation():
    layer = ib.ImplicitBias(lam=-0.5, p=10.0)
    y = IMAGES * 3
    z, stats = layer(y, return_stats=True)
    expected = ib.solve(
        y.astype(jnp.float64), -0.5, 10.0, ib.Uniform((-3, -2)), solver=ib.Newton()
    ).value
    np.testing.assert_allclose(z, expected, atol=1e-4)
    assert stats.steps.shape == (4, 1) and stats.converged.all()


def test_one_lam_per_channel():
    layer = ib.ImplicitBias(channels=3, lam=jnp.array([-1.0, 0.0, 0.05]))
    y = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5, 3)), jnp.float32)
    z = layer(y)
    for c, lam in enumerate((-1.0, 0.0, 0.05)):
        np.testing.assert_allclose(
            z[..., c], ib.ImplicitBias(lam=lam)(y[..., c : c + 1])[..., 0], atol=1e-5
        )


def test_linear_and_conv_inside_a_users_network():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = ib.IBNNConv(1, 4, (3, 3), strides=2, lam=-0.5, rngs=rngs)
            self.dense = ib.IBNNLinear(64, 5, lam=-0.1, activation=nnx.tanh, rngs=rngs)

        def __call__(self, x):
            return self.dense(self.conv(x).reshape(len(x), -1))

    model = Net(nnx.Rngs(0))
    gradient = nnx.jit(nnx.grad(lambda m, x: (m(x) ** 2).sum()))(model, IMAGES)
    assert model(IMAGES).shape == (4, 5)
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0


def test_frozen_and_trained_parameters():
    assert count(ib.ImplicitBias(lam=0.0)) == 1
    assert count(ib.ImplicitBias(lam=0.0, train_lam=False)) == 0
    assert count(ib.ImplicitBias(lam=0.0, train_p=True)) == 2
    assert count(ib.ImplicitBias(lam=0.0, channels=3, train_lam=True)) == 3
    layer = ib.ImplicitBias(lam=-0.5, p=3.0, train_p=True)
    gradient = nnx.grad(lambda m: (m(IMAGES) ** 2).sum())(layer)
    numeric = [
        (ib.ImplicitBias(lam=-0.5, p=float(3.0 * np.exp(e)))(IMAGES) ** 2).sum()
        for e in (0.01, -0.01)
    ]
    np.testing.assert_allclose(
        gradient["log_p"][...], (numeric[0] - numeric[1]) / 0.02, rtol=2e-2
    )


def test_lite_is_one_explicit_step():
    layer = ib.ImplicitBias(lam=-0.5, p=2.0, lite=True)
    z, stats = layer(IMAGES, return_stats=True)
    flat = np.asarray(IMAGES, float).reshape(4, 64)
    bias = np.tanh(2 * (flat[:, None, :] - flat[:, :, None])).mean(-1)
    np.testing.assert_allclose(z.reshape(4, 64), flat + 0.5 * bias, atol=1e-5)
    assert not stats.converged.all()


@pytest.mark.parametrize(
    "constraint, lam, kept",
    [
        ("unique", 0.2, 0.095),
        ("unique", -3.0, -3.0),
        ("nonpositive", 0.02, 0.0),
        (None, 0.2, 0.2),
    ],
)
def test_project_keeps_lam_inside_its_constraint(constraint, lam, kept):
    layer = ib.ImplicitBias(lam=lam, p=10.0, constraint=constraint)
    ib.project(layer)
    assert float(layer.lam[...]) == pytest.approx(kept)
    window = ib.ImplicitBias(lam=lam, coupling=ib.Window((3, 3)), constraint=constraint)
    ib.project(window)
    assert float(window.lam[...]) == pytest.approx(
        min(kept, 0.95 * 0.075) if constraint == "unique" else kept
    )


def test_lam_past_the_bound_is_allowed_and_warned_of_once():
    layer = ib.ImplicitBias(lam=0.3, constraint=None)
    with pytest.warns(UserWarning, match="uniqueness bound 0.1"):
        layer(IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(IMAGES)
        nnx.jit(lambda m, y: m(y))(ib.ImplicitBias(lam=0.3, constraint=None), IMAGES)


def test_free_lam_leaves_the_region_and_the_constraint_is_the_cure():
    """Descent on a loss that wants the pixels of a map apart drives lam up without end,
    unless it is projected.
    """
    y = jnp.asarray(
        np.random.default_rng(0).normal(size=(2, 6, 6, 1)) * 0.1, jnp.float32
    )

    def trained(constraint):
        layer = ib.ImplicitBias(lam=0.0, constraint=constraint)
        gradient = nnx.jit(nnx.grad(lambda m: -m(y).var()))
        for _ in range(40):
            layer.lam[...] = layer.lam[...] - 0.5 * gradient(layer)["lam"][...]
            ib.project(layer)
        return float(layer.lam[...]), layer(y, return_stats=True)[1]

    free, _ = trained(None)
    kept, stats = trained("unique")
    assert free > ib.uniqueness_bound(10.0, ib.Uniform())
    assert kept == pytest.approx(0.095) and stats.converged.all()


@pytest.mark.parametrize("layers, channels", [(1, 3), (2, 4)])
def test_the_twin_has_the_same_parameters_but_lam_and_the_same_start(layers, channels):
    def make(neuron):
        return ib.UCN(
            (8, 8, 1),
            10,
            layers=layers,
            channels=channels,
            kernel_size=3,
            neuron=neuron,
            rngs=nnx.Rngs(0),
        )

    ibnn, sm = make(ib.ImplicitBias), make(None)
    assert count(ibnn) == count(sm) + layers
    for a, b in zip(ibnn.blocks, sm.blocks):
        np.testing.assert_array_equal(a.conv.kernel[...], b.conv.kernel[...])
    np.testing.assert_array_equal(ibnn.head.kernel[...], sm.head.kernel[...])
    assert ibnn(IMAGES).shape == (4, 10)
    assert len(ibnn.lams()) == layers and sm.lams() == ()
    assert abs(float(sm.blocks[0].conv.kernel[...].std()) - 1e-3) < 4e-4


def test_kernel_side_is_fifteen_percent_of_the_image():
    shapes = {28: (4, 4), 32: (5, 5), 8: (1, 1)}
    for size, kernel in shapes.items():
        model = ib.UCN((size, size, 1), 2, neuron=None, rngs=nnx.Rngs(0))
        assert model.blocks[0].conv.kernel[...].shape[:2] == kernel


def test_transfer_copies_all_but_lam():
    def make(neuron, seed, **k):
        return ib.UCN((8, 8, 1), 10, neuron=neuron, rngs=nnx.Rngs(seed), **k)

    sm, ibnn = make(None, 0), make(partial(ib.ImplicitBias, lam=0.0), 1)
    sm(IMAGES)  # moves the running statistics
    ib.transfer(sm, ibnn)
    for model in (sm, ibnn):
        model.eval()
    np.testing.assert_allclose(ibnn(IMAGES), sm(IMAGES), atol=1e-6)
    with pytest.raises(ValueError, match="shapes differ"):
        ib.transfer(make(None, 0, channels=4), ibnn)
    with pytest.raises(ValueError, match="layers"):
        ib.transfer(make(None, 0, layers=2), ibnn)


def test_a_transfer_that_is_refused_changes_nothing():
    def make(seed, kernel_size):
        options = {"kernel_size": kernel_size, "rngs": nnx.Rngs(seed)}
        return ib.UCN((8, 8, 1), 10, neuron=None, **options)

    target = make(0, 3)
    before = jax.tree.map(jnp.copy, nnx.state(target))
    with pytest.raises(ValueError, match="shapes differ"):
        ib.transfer(make(1, 1), target)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(target))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: ib.ImplicitBias(lam=0.0, p=-1.0), "p must be"),
        (lambda: ib.ImplicitBias(lam=0.0, constraint="uniq"), "constraint"),
        (lambda: ib.ImplicitBias(lam=jnp.zeros(2)), "does not fit"),
        (lambda: ib.ImplicitBias(), "rngs"),
        (lambda: ib.UCN((8, 8), 10, rngs=nnx.Rngs(0)), "image_shape"),
        (lambda: ib.UCN((8, 8, 1), 10, layers=0, rngs=nnx.Rngs(0)), "at least 1"),
    ],
)
def test_bad_options_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_training_step_compiles_once_and_lowers_the_loss():
    model = ib.UCN((8, 8, 1), 4, kernel_size=3, rngs=nnx.Rngs(0))
    labels = jnp.arange(4)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1, 0.9), wrt=nnx.Param)
    traces = []

    @nnx.jit
    def step(model, optimizer):
        traces.append(1)

        def loss(m):
            return optax.softmax_cross_entropy_with_integer_labels(
                m(IMAGES), labels
            ).mean()

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        ib.project(model)
        return value

    losses = [float(step(model, optimizer)) for _ in range(15)]
    assert len(traces) == 1 and losses[-1] < losses[0]


def test_seeds_vmapped_are_the_seeds_alone():
    def make(key):
        return nnx.split(
            ib.UCN(
                (8, 8, 1),
                4,
                kernel_size=3,
                neuron=partial(ib.ImplicitBias, lam=-0.3),
                rngs=nnx.Rngs(key),
            )
        )

    graph = make(jax.random.key(0))[0]
    keys = jax.random.split(jax.random.key(1), 3)
    states = jax.vmap(lambda key: make(key)[1])(keys)

    def run(state):
        return nnx.merge(graph, state)(IMAGES)

    together = jax.vmap(run)(states)
    for i in range(3):
        alone = run(jax.tree.map(lambda x, i=i: x[i], states))
        np.testing.assert_allclose(together[i], alone, atol=2e-6)
