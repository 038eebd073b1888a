"""The layers in networks of a user's own: couplings, axes, pickles, empty batches."""

import multiprocessing
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ibnn_jax as ib

RNG = np.random.default_rng(0)
RAW = RNG.random((5, 5))
W = ((RAW + RAW.T) / 10).astype(np.float32)


def random(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


# --- Dense couplings


@pytest.mark.parametrize("train_w", [False, True])
def test_a_dense_coupling_is_part_of_the_layers_state(train_w):
    layer = ib.IBNNLinear(
        4, 5, lam=-0.5, coupling=ib.Dense(W), train_w=train_w, rngs=nnx.Rngs(0)
    )
    x = random(3, 4)
    y = layer.affine(x)
    expected = nnx.relu(ib.solve(y, -0.5, 10.0, ib.Dense(W)).value)
    np.testing.assert_allclose(
        nnx.jit(lambda m, x: m(x))(layer, x), expected, atol=1e-5
    )
    assert nnx.state(layer)["implicit"]["w"][...].shape == (5, 5)
    gradient = nnx.jit(nnx.grad(lambda m: (m(x) ** 2).sum()))(layer)
    assert ("w" in gradient["implicit"]) == train_w
    graph, state = nnx.split(layer)
    doubled = jax.tree.map(lambda a: 2 * a, state)
    assert not np.allclose(nnx.merge(graph, doubled)(x), expected)


def test_a_trained_w_is_used_and_kept_symmetric_and_non_negative():
    layer = ib.ImplicitBias(lam=-0.5, coupling=ib.Dense(W), train_w=True)
    layer.w[...] = layer.w[...].at[0, 1].add(-1.0)
    y = random(2, 5)
    used = np.maximum((np.asarray(layer.w[...]) + np.asarray(layer.w[...]).T) / 2, 0)
    expected = ib.solve(y, -0.5, 10.0, ib.Dense(used)).value
    np.testing.assert_allclose(layer(y), expected, atol=1e-5)
    ib.project(layer)
    np.testing.assert_array_equal(layer.w[...], used)


def test_dense_in_other_places():
    assert ib.UCN(
        (4, 4, 1),
        2,
        channels=5,
        neuron=lambda rngs: ib.ImplicitBias(coupling=ib.Dense(W), lam=-0.1, rngs=rngs),
        rngs=nnx.Rngs(0),
    )(random(2, 4, 4, 1)).shape == (2, 2)
    y = random(3, 5)

    def total(coupling, y):
        return ib.implicit_bias(y, -0.5, 10.0, coupling).sum()

    dense = jax.tree.map(jnp.asarray, ib.Dense(W))
    alone = jax.jit(total)(dense, y)
    two = jax.tree.map(lambda w: jnp.stack([w, w]), dense)
    np.testing.assert_allclose(jax.vmap(total, (0, None))(two, y), [alone] * 2)
    assert jax.grad(total)(dense, y).w.shape == (5, 5)


@pytest.mark.parametrize(
    "made",
    [ib.Uniform((-1,)), ib.Window((3, 3)), ib.Dense(W), ib.Uniform((-1,)).bind((5,))],
    ids=lambda c: type(c).__name__,
)
def test_registered_classes_survive_flattening(made):
    leaves, tree = jax.tree.flatten(made)
    again = jax.tree.unflatten(tree, leaves)
    assert type(again) is type(made) and again.sigma == made.sigma
    assert jax.tree.structure(jax.tree.map(lambda x: 2 * x, made)) == tree


# --- axes


@pytest.mark.parametrize(
    "size, shape", [((5,), (9,)), ((3, 3), (6, 5)), ((2,) * 3, (4, 3, 5))]
)
def test_convolutions_couple_their_spatial_axes_and_no_batch(size, shape):
    layer = ib.IBNNConv(2, 3, size, lam=-0.5, rngs=nnx.Rngs(0))
    x = random(3, *shape, 2)
    together, alone = layer(x), layer(x[:1])
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)
    axes = tuple(range(1, len(shape) + 1))
    y = layer.affine(x)
    expected = ib.solve(y, -0.5, 10.0, ib.Uniform(axes)).value
    np.testing.assert_allclose(together, nnx.relu(expected), atol=1e-3)


def test_a_coupling_over_the_batch_is_refused():
    layer = ib.ImplicitBias(lam=-0.5)
    with pytest.raises(ValueError, match="couple axis 0, the batch"):
        layer(random(4, 9, 2))
    one = ib.ImplicitBias(lam=-0.5, batched=False)(random(4, 9, 2))
    assert one.shape == (4, 9, 2)
    vector = ib.ImplicitBias(lam=-0.5, coupling=ib.Uniform((-1,)))(random(7))
    assert vector.shape == (7,)


# --- the rest of a user's program


def test_pickles(tmp_path):
    model = ib.UCN((6, 6, 1), 3, rngs=nnx.Rngs(0))
    layers = [ib.IBNNLinear(2, 3, rngs=nnx.Rngs(0)), ib.NEMON(2, 3, rngs=nnx.Rngs(0))]
    split = [nnx.split(m) for m in (model, *layers)]
    for made in (ib.ImplicitBias(lam=0.0), ib.hard_tanh, ib.tanh, *layers, *split):
        pickle.loads(pickle.dumps(made))
    layer = pickle.loads(pickle.dumps(ib.ImplicitBias(lam=-0.5)))
    y = random(2, 6, 6, 1)
    np.testing.assert_array_equal(layer(y), ib.ImplicitBias(lam=-0.5)(y))


def lam_of(layer):
    return float(layer.lam[...])


def test_a_layer_travels_to_another_process():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(lam_of, (ib.ImplicitBias(lam=-0.5),)) == -0.5


@pytest.mark.parametrize("neuron", [ib.ImplicitBias, None])
def test_empty_batches(neuron):
    model = ib.UCN((6, 6, 1), 3, neuron=neuron, rngs=nnx.Rngs(0))
    model.eval()
    assert model(jnp.zeros((0, 6, 6, 1))).shape == (0, 3)
    assert jax.vmap(model)(jnp.zeros((0, 2, 6, 6, 1))).shape == (0, 2, 3)


@pytest.mark.parametrize("solver", ["auto", ib.Newton(), ib.MeanField()], ids=str)
def test_empty_solves(solver):
    y = jnp.zeros((0, 12, 12, 2))
    solution = ib.solve(y, -0.5, 10.0, ib.Uniform(), solver=solver)
    assert solution.value.shape == y.shape and solution.result.shape == (0, 2)
    with pytest.raises(ValueError, match="empty groups"):
        ib.solve(jnp.zeros((3, 0, 4, 2)), -0.5, 10.0, ib.Uniform(), solver=solver)


def test_a_warning_about_lam_costs_no_trace():
    layer, traces = ib.ImplicitBias(lam=0.3, constraint=None), []

    @nnx.jit
    def call(layer, y):
        traces.append(1)
        return layer(y)

    y = random(2, 4, 4, 1)
    call(layer, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer(y)
    call(layer, y)
    assert len(traces) == 1


def test_project_lam_is_pure():
    assert ib.project_lam(0.2, 10.0, ib.Uniform()) == pytest.approx(0.095)
    assert ib.project_lam(0.2, 10.0, ib.Uniform(), "nonpositive") == 0
    assert ib.project_lam(0.2, 10.0, ib.Uniform(), None) == 0.2
    lam = jnp.array([-1.0, 0.2])
    np.testing.assert_allclose(
        jax.jit(lambda lam: ib.project_lam(lam, 10.0, ib.Window((3, 3))))(lam),
        [-1.0, 0.95 * 0.075],
        rtol=1e-6,
    )
    with pytest.raises(TypeError, match="project_lam"):
        ib.project({"lam": 0.2})


@pytest.mark.parametrize("train_w", [True, False])
def test_a_stack_of_modules_is_projected_one_by_one(train_w):
    w = jnp.array([[0.0, 1.0], [1.0, 0.0]])

    @nnx.vmap(in_axes=0, out_axes=0)
    def create(lam, scale, p):
        layer = ib.ImplicitBias(
            lam=lam, p=p, coupling=ib.Dense(w), train_p=True, train_w=train_w
        )
        layer.w[...] = scale * layer.w[...]
        layer.w_negative = scale * layer.w_negative if not train_w else None
        return layer

    ps, scales = jnp.array([1.0, 4.0]), jnp.array([1.0, 0.5])
    layers = create(jnp.full(2, 9.0), scales, ps)
    ib.project(layers)
    # Two rival neurons: R = m = scale, so the bound is 1 / (2 p scale).
    np.testing.assert_allclose(layers.lam[...], 0.95 / (2 * ps * scales), rtol=1e-5)
    np.testing.assert_allclose(layers.w[...], scales[:, None, None] * w)


def test_a_stack_with_a_lam_for_each_channel_is_projected():
    @nnx.vmap(in_axes=0, out_axes=0)
    def create(p):
        return ib.ImplicitBias(lam=9.0, channels=3, p=p)

    layers = create(jnp.array([1.0, 4.0]))
    ib.project(layers)
    np.testing.assert_allclose(layers.lam[...], [[0.95] * 3, [0.2375] * 3], rtol=1e-5)


def test_bytes_are_refused():
    model = ib.UCN((6, 6, 1), 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="/ 255"):
        model(jnp.zeros((2, 6, 6, 1), jnp.uint8))


def test_the_old_spelling_of_the_twin_still_works():
    with pytest.warns(DeprecationWarning, match="neuron=None"):
        model = ib.UCN((6, 6, 1), 3, implicit=False, rngs=nnx.Rngs(0))
    assert model.lams() == ()


@pytest.mark.parametrize(
    "layer, shape",
    [
        (lambda rngs: ib.IBNNLinear(3, 4, rngs=rngs), (2, 3)),
        (lambda rngs: ib.IBNNConv(1, 2, (3, 3), rngs=rngs), (2, 6, 6, 1)),
        (lambda rngs: ib.EquilibriumClassifier((3,), 2, features=4, rngs=rngs), (2, 3)),
    ],
    ids=["linear", "convolution", "classifier"],
)
def test_layers_can_be_tabulated(layer, shape):
    table = nnx.tabulate(layer(nnx.Rngs(0)), jnp.ones(shape))
    assert "Summary" in table and "float32" in table
