"""The layers NEMON, NEMONConv and their rivals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ibnn_jax
from ibnn_jax import nemon


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def in_float64(layer, rng, spread=0.5):
    """The layer with larger random Params, in float64."""
    graph, state = nnx.split(layer)
    state = jax.tree.map(
        lambda x: x.astype(jnp.float64) + spread * rng.normal(size=x.shape) / len(x),
        state,
    )
    return nnx.merge(graph, state)


def dense_gradients(layer, x, v):
    """dL/dParams for L = v . z by the dense system, one linear solve per row."""
    graph, state = nnx.split(layer)

    def forward(state, d):
        layer = nnx.merge(graph, state)
        return d * (z @ layer.matrix().T + layer.affine(x))

    z = layer(x)
    s = z @ layer.matrix().T + layer.affine(x)
    d = (s > 0).astype(z.dtype)
    H = jnp.eye(z.shape[1]) - d[:, :, None] * layer.matrix()
    w = jnp.linalg.solve(H.swapaxes(1, 2), v[:, :, None])[:, :, 0]
    return jax.vjp(lambda state: forward(state, d), state)[1](w)[0]


@pytest.mark.parametrize("gamma", [-1.0, 0.0, 0.9])
def test_gradients_of_the_params(rng, gamma):
    layer = in_float64(ibnn_jax.NEMON(5, 7, gamma=gamma, rngs=nnx.Rngs(0)), rng)
    x, v = rng.normal(size=(4, 5)), rng.normal(size=(4, 7))
    gradient = nnx.grad(lambda layer: (v * layer(x)).sum())(layer)
    exact = dense_gradients(layer, x, v)
    assert set(gradient) == {"T", "log_eta", "B", "b"}
    for name in gradient:
        found, wanted = gradient[name][...], exact[name][...]
        assert jnp.abs(wanted).max() > 0
        np.testing.assert_allclose(found, wanted, atol=1e-6, err_msg=name)


def test_mu_is_at_most_gamma_whatever_the_params(rng):
    for gamma in (-1.0, 0.5):
        layer = ibnn_jax.NEMON(5, 7, gamma=gamma, rngs=nnx.Rngs(0))
        layer = in_float64(layer, rng, spread=20)
        assert nemon.matrix_measure(layer.matrix(), layer.eta) <= gamma + 1e-10
        conv = ibnn_jax.NEMONConv(2, 3, (3, 3), gamma=gamma, rngs=nnx.Rngs(0))
        conv = in_float64(conv, rng, spread=20)
        A = conv.matrix((4, 5))
        dense = A.apply(jnp.eye(60)).T
        mu = nemon.matrix_measure(dense, jnp.tile(conv.eta, 20))
        assert mu <= gamma + 1e-10


def test_convolution_layer_agrees_with_the_dense_matrix(rng):
    conv = ibnn_jax.NEMONConv(2, 3, (3, 3), strides=2, gamma=0.5, rngs=nnx.Rngs(0))
    conv = in_float64(conv, rng)
    x = rng.normal(size=(2, 6, 8, 2))
    z, stats = conv(x, return_stats=True)
    assert z.shape == (2, 3, 4, 3) and stats.converged.shape == (2,)
    dense = conv.matrix((3, 4)).apply(jnp.eye(36)).T
    u = conv.affine(x).reshape(2, 36)
    same = nemon.solve(dense, u).value
    np.testing.assert_allclose(z.reshape(2, 36), same, atol=1e-9)
    np.testing.assert_allclose(conv(x[0]), z[0], atol=1e-9)


def test_bounds_of_layers_hold(rng):
    dense = [
        ibnn_jax.NEMON(5, 7, gamma=0.5, rngs=nnx.Rngs(0)),
        ibnn_jax.NormBounded(5, 7, rngs=nnx.Rngs(0)),
        ibnn_jax.MON(5, 7, rngs=nnx.Rngs(0)),
    ]
    x = rng.normal(size=(200, 5))
    step = 0.05 * rng.choice([-1.0, 1.0], size=x.shape)
    C = rng.normal(size=(3, 7))
    for layer in dense:
        layer = in_float64(layer, rng)
        lo, hi = layer.interval(x - 0.05, x + 0.05)
        z, moved = layer(x), layer(x + step)
        for inside in (z, moved):
            assert (lo <= inside + 1e-9).all() and (inside <= hi + 1e-9).all()
        change = jnp.abs((moved - z) @ C.T).max() / 0.05
        assert change <= min(layer.lipschitz(C)) * (1 + 1e-9)
        if hasattr(layer, "regulariser"):
            assert layer.regulariser(C) >= layer.lipschitz(C)[0]


def test_a_monotone_layer_that_did_not_converge_bounds_nothing(rng):
    def build(**options):
        return ibnn_jax.MON(5, 7, margin=0.3, rngs=nnx.Rngs(0), **options)

    x = jnp.asarray(rng.normal(size=(20, 5)), jnp.float32)
    z, (lo, hi) = build()(x), build(max_steps=1).interval(x, x)
    assert ((lo <= z) & (z <= hi)).all() and jnp.isinf(lo).all()
    lo, hi = build().interval(x, x)
    assert jnp.isfinite(lo).all() and jnp.isfinite(hi).all()


def test_bounds_of_a_monotone_layer_hold_where_z_is_negative(rng):
    layer = ibnn_jax.MON(
        5, 7, activation=jnp.tanh, solver=ibnn_jax.Newton(), rngs=nnx.Rngs(0)
    )
    layer = in_float64(layer, rng)
    x = rng.normal(size=(20, 5))
    step = 0.05 * rng.choice([-1.0, 1.0], size=x.shape)
    z, stats = layer(x + step, return_stats=True)
    lo, hi = layer.interval(x - 0.05, x + 0.05)
    assert stats.converged.all() and (z < 0).any() and jnp.isfinite(lo).all()
    assert (lo <= z).all() and (z <= hi).all()


def test_bounds_of_the_convolution_hold(rng):
    conv = ibnn_jax.NEMONConv(2, 3, (3, 3), gamma=0.5, rngs=nnx.Rngs(0))
    conv = in_float64(conv, rng)
    x = rng.normal(size=(20, 4, 4, 2))
    step = 0.05 * rng.choice([-1.0, 1.0], size=x.shape)
    C = rng.normal(size=(2, 4, 4, 3))
    lo, hi = conv.interval(x - 0.05, x + 0.05)
    z, moved = conv(x), conv(x + step)
    for inside in (z, moved):
        assert (lo <= inside + 1e-9).all() and (inside <= hi + 1e-9).all()
    change = jnp.einsum("qhwc,nhwc->nq", C, moved - z)
    paper, componentwise = conv.lipschitz(C)
    assert jnp.abs(change).max() / 0.05 <= componentwise <= paper
    assert conv.regulariser(C) >= paper


def test_layers_train_under_jit_and_vmap_over_seeds(rng):
    x, v = rng.normal(size=(8, 5)).astype("f4"), rng.normal(size=(8, 7)).astype("f4")

    @nnx.vmap(in_axes=0, out_axes=0)
    def build(key):
        return ibnn_jax.NEMON(5, 7, rngs=nnx.Rngs(key))

    def loss(layer):
        return ((layer(x) - v) ** 2).mean()

    @nnx.jit
    @nnx.vmap
    def descend(layer):
        value, gradient = nnx.value_and_grad(loss)(layer)
        state = nnx.state(layer, nnx.Param)
        nnx.update(layer, jax.tree.map(lambda p, g: p - 0.1 * g, state, gradient))
        return value

    layers = build(jax.random.split(jax.random.key(0), 3))
    values = [descend(layers) for _ in range(20)]
    assert (values[-1] < values[0]).all() and values[0].shape == (3,)


def test_monotone_layer_uses_either_splitting(rng):
    x = rng.normal(size=(4, 5))
    layer = in_float64(ibnn_jax.MON(5, 7, margin=0.3, rngs=nnx.Rngs(0)), rng)
    assert nemon.is_monotone(layer.matrix())
    z, stats = layer(x, return_stats=True)
    layer.solver = nemon.ForwardBackward(0.05)
    np.testing.assert_allclose(layer(x), z, atol=1e-8)
    assert stats.converged.all()


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda r: ibnn_jax.NEMON(5, 7, gamma=1.0, rngs=r), "gamma must be below 1"),
        (lambda r: ibnn_jax.NEMONConv(1, 2, (2, 2), rngs=r), "odd h and w"),
        (
            lambda r: ibnn_jax.NormBounded(5, 7, bound=1.0, rngs=r),
            r"bound must be in \(0, 1\)",
        ),
        (lambda r: ibnn_jax.MON(5, 7, margin=0.0, rngs=r), "margin must be in"),
        (
            lambda r: ibnn_jax.NEMON(5, 7, activation=nnx.gelu, rngs=r),
            "nondecreasing",
        ),
        (lambda r: ibnn_jax.NEMON(5, 7, gamma=-np.inf, rngs=r), "finite"),
        (lambda r: ibnn_jax.NEMON(5, 7, solver="newton", rngs=r), "unknown solver"),
        (lambda r: ibnn_jax.NEMON(5, 7, adjoint="exact", rngs=r), "adjoint must be"),
        (lambda r: ibnn_jax.NEMON(5, 7, max_steps=0, rngs=r), "max_steps"),
        (
            lambda r: ibnn_jax.NEMON(5, 7, solver=ibnn_jax.MeanField(), rngs=r),
            "MeanField solves Uniform couplings",
        ),
        (
            lambda r: ibnn_jax.MON(5, 7, activation=jnp.tanh, rngs=r),
            r"PeacemanRachford solves z = relu\(A z \+ u\) with a dense A",
        ),
        (
            lambda r: ibnn_jax.NEMONConv(
                1, 2, (3, 3), solver=nemon.ForwardBackward(), rngs=r
            ),
            "ForwardBackward solves .* with a dense A",
        ),
        (lambda r: ibnn_jax.NEMON(5, 0, rngs=r), "features must be at least 1"),
        (lambda r: ibnn_jax.NEMONConv(1, 2, 3, rngs=r), r"\(rows, columns\)"),
        (lambda r: ibnn_jax.NEMONConv(1, 2, (3, 3), strides=0, rngs=r), "strides"),
        (
            lambda r: ibnn_jax.NEMON(5, 7, rngs=r).interval(jnp.ones(5), jnp.zeros(5)),
            "lower end",
        ),
    ],
)
def test_bad_calls_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build(nnx.Rngs(0))


def test_half_precision_integers_and_empty_batches():
    image = np.ones((1, 4, 4, 1))
    layer = ibnn_jax.NEMONConv(1, 2, (3, 3), rngs=nnx.Rngs(0))
    for dtype in (jnp.bfloat16, jnp.float16, jnp.int32):
        assert layer(jnp.asarray(image, dtype)).dtype == jnp.float32
    model = ibnn_jax.EquilibriumClassifier((4,), 3, features=5, rngs=nnx.Rngs(0))
    assert model(jnp.zeros((0, 4))).shape == (0, 3)
    assert model.certified(jnp.zeros((0, 4)), jnp.zeros(0, int), 0.1).shape == (0,)


@pytest.mark.parametrize(
    "images, labels, eps, message",
    [
        (1.0, [0, 3], 0.1, r"in 0\.\.2"),
        (1.0, [0, -1], 0.1, r"in 0\.\.2"),
        (1.0, [0], 0.1, "one per image"),
        (1.0, [0.0, 1.0], 0.1, "integers"),
        (1.0, [0, 1], -0.1, "eps must be at least 0"),
        (255.0, [0, 1], 0.1, r"within \[0, 1\]"),
    ],
)
def test_no_certificate_for_what_makes_no_sense(images, labels, eps, message):
    model = ibnn_jax.EquilibriumClassifier((4,), 3, features=5, rngs=nnx.Rngs(0))
    images, labels = jnp.full((2, 4), images), np.array(labels)
    with pytest.raises(ValueError, match=message):
        model.certified(images, labels, eps)
    if "2" in message:  # traced, it is not certified
        certified = jax.jit(lambda labels: model.certified(images, labels, 0.0))
        assert not certified(labels)[1]


def test_every_image_may_have_an_eps_of_its_own(rng):
    model = ibnn_jax.EquilibriumClassifier((4, 4), 3, features=5, rngs=nnx.Rngs(0))
    images = jnp.asarray(rng.uniform(size=(4, 4, 4)), jnp.float32)
    labels, eps = model(images).argmax(1), jnp.array([0.0, 0.01, 0.1, 0.3])
    alone = [
        model.margins(images[i : i + 1], labels[i : i + 1], eps[i])[0] for i in range(4)
    ]
    for margins in (model.margins, jax.jit(model.margins)):
        found = margins(images, labels, eps)
        np.testing.assert_allclose(found, jnp.stack(alone), atol=1e-6)
    for wrong in (eps[:, None], eps[:2], jnp.ones((4, 4, 4))):
        with pytest.raises(ValueError, match=r"one number, or one per image, \[4\]"):
            model.margins(images, labels, wrong)


def test_a_label_that_wraps_around_in_32_bits_is_no_class():
    model = ibnn_jax.EquilibriumClassifier((4,), 3, features=5, rngs=nnx.Rngs(0))
    images, labels = jnp.zeros((1, 4), jnp.float32), np.array([2**32 + 1])
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"in 0\.\.2.*4294967"):
        model.certified(images, labels, 0.0)


def test_an_interval_upside_down_bounds_nothing():
    layer = ibnn_jax.NEMON(3, 4, rngs=nnx.Rngs(0))
    x = jnp.ones((2, 3))
    low, high = jax.jit(layer.interval)(x, x.at[1, 0].set(0.0))
    assert jnp.isfinite(low[0]).all() and jnp.isinf(low[1]).all()


def test_classifier_certifies_what_no_attack_changes(rng, tmp_path):
    layer = partial(ibnn_jax.NEMON, gamma=0.5)
    model = ibnn_jax.EquilibriumClassifier(
        (4, 3), 3, features=6, layer=layer, rngs=nnx.Rngs(0)
    )
    images = jnp.asarray(rng.uniform(size=(300, 4, 3)), jnp.float32)
    labels = model(images).argmax(1)
    certified = model.certified(images, labels, 0.05)
    assert 0 < certified.mean() < 1
    margins = model.margins(images, labels, 0.05)
    for _ in range(30):
        step = 0.05 * rng.choice([-1.0, 1.0], size=images.shape)
        y, stats = model(jnp.clip(images + step, 0, 1), return_stats=True)
        assert (y.argmax(1) == labels)[certified].all()
        assert stats[0].converged.all()
        own = jnp.take_along_axis(y, labels[:, None], 1)
        assert (margins <= own - y + 1e-4).all()
    assert model.regulariser() >= model.lipschitz()[0] >= model.lipschitz()[1]
    ibnn_jax.save(model, tmp_path / "net")
    assert (ibnn_jax.load(tmp_path / "net")(images) == model(images)).all()
