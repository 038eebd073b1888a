"""A network comes back from its folder as it was, or not at all."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ibnn_jax as ib

IMAGES = jax.random.uniform(jax.random.key(0), (3, 6, 6, 1), jnp.float32)
RNGS = {"rngs": nnx.Rngs(3)}
SMALL = {"channels": 2, "kernel_size": 2}
HALF = np.full((16, 16), 1 / 16, np.float32)


@ib.saveable
def squashed(x):
    return jnp.tanh(x) / 2


@ib.saveable
class FromKey(nnx.Module):
    def __init__(self, key, keys):
        self.w = nnx.Param(jax.random.normal(key, (2,)) + jax.random.normal(keys[0]))


@ib.saveable
class Scaled(nnx.Module):
    def __init__(self, scale):
        assert scale > 0
        self.scale = scale


@ib.saveable
class Residual(nnx.Module):
    """A user's own network, with what a constructor may take."""

    def __init__(
        self, sizes, *parts, dtype=jnp.float32, activation=nnx.relu, **options
    ):
        self.layers = nnx.List(
            [
                ib.IBNNLinear(a, b, activation=activation, dtype=dtype, **options)
                for a, b in zip(sizes, sizes[1:])
            ]
        )
        self.parts = nnx.List(parts)
        self.norm = nnx.BatchNorm(8, rngs=options["rngs"])
        self.dropout = nnx.Dropout(0.5, rngs=options["rngs"])

    def __call__(self, images):
        x = images.reshape(len(images), -1)
        for layer in (*self.layers, *self.parts):
            x = layer(x)
        return self.dropout(self.norm(x))


def ucn(**neuron):
    return ib.UCN(
        (6, 6, 1),
        3,
        layers=2,
        **SMALL,
        neuron=partial(ib.ImplicitBias, **neuron),
        **RNGS,
    )


NETWORKS = {
    "ucn": lambda: ib.UCN((6, 6, 1), 3, **RNGS),
    "standard twin": lambda: ib.UCN((6, 6, 1), 3, layers=2, neuron=None, **RNGS),
    "half precision": lambda: ib.UCN((6, 6, 1), 3, dtype=jnp.bfloat16, **RNGS),
    "convolution": lambda: ib.UCN(
        (6, 6, 1), 3, conv_general_dilated=ib.canonical_convolution, **RNGS
    ),
    "channels": lambda: ucn(channels=2, lam=jnp.array([-0.5, 0.02])),
    "whole layer": lambda: ucn(coupling=ib.Uniform((-3, -2, -1)), lam=-0.5),
    "window": lambda: ucn(coupling=ib.Window((3, 5)), lam=-0.1, train_p=True, p=4.0),
    "hard tanh": lambda: ucn(coupling=ib.Uniform(sigma=ib.hard_tanh), lam=-0.1),
    "lite": lambda: ucn(lite=True, constraint=None, lam=0.01, train_lam=False),
    "newton": lambda: ucn(
        solver=ib.Newton(), adjoint=ib.Implicit(any_order=True), tol=1e-4, lam=-0.3
    ),
    "mean field": lambda: ucn(
        solver=ib.MeanField(cells=(19, 63)), adjoint=ib.Phantom(k=2), lam=-0.3
    ),
    "picard": lambda: ucn(
        solver=ib.Picard(damping=0.5), adjoint=ib.Unrolled(max_steps=7), lam=-0.01
    ),
    "anderson": lambda: ucn(solver=ib.Anderson(), max_steps=30, lam=-0.1),
    "broyden": lambda: ucn(solver=ib.Broyden(), lam=-0.1),
    "dense": lambda: ib.IBNNLinear(36, 16, coupling=ib.Dense(HALF), lam=-0.5, **RNGS),
    "trained w": lambda: ib.IBNNLinear(
        36, 16, coupling=ib.Dense(HALF), lam=-0.5, train_w=True, **RNGS
    ),
    "conv": lambda: ib.IBNNConv(
        1,
        2,
        3,
        strides=2,
        use_bias=False,
        coupling=ib.Uniform((-2,)),
        lam=-0.5,
        kernel_init=nnx.initializers.orthogonal(),
        precision=jax.lax.Precision.HIGHEST,
        **RNGS,
    ),
    "nemon": lambda: ib.NEMON(36, 5, gamma=-0.2, activation=jnp.tanh, **RNGS),
    "bfloat16": lambda: ib.IBNNLinear(36, 5, param_dtype=jnp.bfloat16, **RNGS),
    "nemon conv": lambda: ib.NEMONConv(1, 2, (3, 3), **RNGS),
    "numbers as arrays": lambda: ib.NEMON(
        np.array(36), jnp.array(5), gamma=jnp.float32(-0.2), tol=np.array(1e-3), **RNGS
    ),
    "a bound as an array": lambda: ib.NormBounded(36, 5, bound=jnp.array(0.5), **RNGS),
    "a margin as an array": lambda: ib.MON(36, 5, margin=np.array(0.3), **RNGS),
    "p and lam as arrays": lambda: ib.IBNNLinear(
        36, 5, p=jnp.float32(4.0), lam=np.array(-0.1), **RNGS
    ),
    "sizes as arrays": lambda: ib.UCN(
        (6, 6, 1), np.array(3), channels=np.array(2), kernel_size=jnp.array(2), **RNGS
    ),
    "filters as arrays": lambda: ib.IBNNConv(
        1, 2, jnp.array(3), strides=2, lite=np.array(True), **RNGS
    ),
    "monotone": lambda: ib.MON(36, 5, margin=0.3, **RNGS),
    "norm bounded": lambda: ib.NormBounded(36, 5, bound=0.5, **RNGS),
    "equilibrium": lambda: ib.EquilibriumClassifier(
        (6, 6, 1), 3, features=5, layer=partial(ib.NEMON, gamma=0.5), **RNGS
    ),
    "front": lambda: ib.EquilibriumClassifier(
        (6, 6, 1), 3, front=partial(ib.ConvolutionalFront, channels=(2,)), **RNGS
    ),
    "own": lambda: Residual([36, 16, 8], lam=-0.5, activation=jnp.tanh, **RNGS),
    "own parts": lambda: Residual(
        (36, 4),
        ib.IBNNLinear(4, 8, lam=-0.1, activation=squashed, **RNGS),
        dtype=jnp.bfloat16,
        **RNGS,
    ),
}


def moved(model):
    """The model with other values everywhere, as after training."""
    state = nnx.state(model, nnx.Not(nnx.RngState))
    shift = partial(jax.tree.map, lambda x: x + jnp.asarray(0.01, x.dtype))
    nnx.update(model, shift(state))
    model.eval()
    return model


def inputs(model):
    dense = isinstance(model, ib.IBNNLinear | ib.NEMON | ib.MON | ib.NormBounded)
    flat = IMAGES.reshape(3, 36)
    if isinstance(model, ib.IBNNConv):
        return flat[..., None]
    return flat if dense else IMAGES


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_a_network_comes_back_as_it_was(make, tmp_path):
    model = moved(make())
    ib.save(model, tmp_path / "net")
    found = ib.load(tmp_path / "net")
    assert type(found) is type(model)
    before, after = (
        nnx.to_flat_state(nnx.state(m, nnx.Not(nnx.RngState))) for m in (model, found)
    )
    for (path, a), (_, b) in zip(before, after, strict=True):
        assert type(a) is type(b) and a[...].dtype == b[...].dtype, path
        np.testing.assert_array_equal(a[...], b[...])
    x = inputs(model)
    np.testing.assert_array_equal(found(x), model(x))
    # It can be saved again, to the same bytes.
    ib.save(found, tmp_path / "again")
    for name in ("structure.json", "weights.safetensors"):
        assert (tmp_path / "net" / name).read_bytes() == (
            tmp_path / "again" / name
        ).read_bytes()


def test_a_number_that_is_an_array_comes_back(tmp_path):
    ib.save(Scaled(jnp.array(2.5, jnp.bfloat16)), tmp_path / "own")
    found = ib.load(tmp_path / "own")
    assert found.scale == 2.5 and found.scale.dtype == jnp.bfloat16
    # Layers take numbers for what they are: constants under jit too.
    conv = ib.NEMONConv(1, 2, (3, 3), gamma=jnp.array(0.5), strides=np.array(2), **RNGS)
    assert (type(conv.gamma), type(conv.strides)) == (float, int)
    maps = nnx.jit(lambda layer, x: layer(x))(conv, IMAGES)
    ib.save(conv, tmp_path / "conv")
    np.testing.assert_allclose(ib.load(tmp_path / "conv")(IMAGES), maps, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
def test_weights_of_64_bits_are_not_rounded_in_silence(tmp_path):
    model = ib.IBNNLinear(36, 5, lam=-0.1, param_dtype=jnp.float64, **RNGS)
    ib.save(model, tmp_path / "net")
    with jax.enable_x64(False):
        with pytest.raises(ValueError, match=r"float64.* become float32 .*enable_x64"):
            ib.load(tmp_path / "net")
    found = ib.load(tmp_path / "net")
    np.testing.assert_array_equal(found.affine.kernel[...], model.affine.kernel[...])
    assert found.affine.kernel[...].dtype == jnp.float64
    ib.save(NETWORKS["numbers as arrays"](), tmp_path / "single")
    with jax.enable_x64(False):
        ib.load(tmp_path / "single")


def test_nothing_in_the_folder_is_code(tmp_path):
    ib.save(NETWORKS["newton"](), tmp_path / "net")
    files = {f.name: f.read_bytes() for f in (tmp_path / "net").iterdir()}
    assert set(files) == {"structure.json", "weights.safetensors"}
    structure = json.loads(files["structure.json"])
    assert structure["model"]["build"] == "UCN"
    assert structure["library"].startswith("ibnn_jax ")
    # A file of numbers alone: safetensors' own header, then the arrays.
    length = int.from_bytes(files["weights.safetensors"][:8], "little")
    assert "head.kernel" in json.loads(files["weights.safetensors"][8 : 8 + length])


def test_a_folder_is_replaced_as_a_whole_and_nothing_else_is(tmp_path):
    path = tmp_path / "deep" / "net"
    ib.save(NETWORKS["ucn"](), path)
    ib.save(NETWORKS["standard twin"](), path)
    assert ib.load(path).lams() == ()
    assert [p.name for p in path.parent.iterdir()] == ["net"]
    (path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not a saved network"):
        ib.save(NETWORKS["ucn"](), path)
    with pytest.raises(ValueError, match="exists and is not a saved network"):
        ib.save(NETWORKS["ucn"](), path / "notes.txt")


def test_any_flipped_bit_of_the_weights_is_noticed(tmp_path):
    ib.save(NETWORKS["ucn"](), tmp_path / "net")
    file = tmp_path / "net" / "weights.safetensors"
    data = file.read_bytes()
    for place in np.linspace(0, len(data) - 1, 23).astype(int):
        flipped = bytearray(data)
        flipped[place] ^= 1
        file.write_bytes(flipped)
        with pytest.raises(ValueError, match="damaged"):
            ib.load(tmp_path / "net")


def test_a_changed_structure_is_noticed(tmp_path):
    ib.save(NETWORKS["newton"](), tmp_path / "net")
    file = tmp_path / "net" / "structure.json"
    text = file.read_text()
    for old, new in (
        ("-0.3", "-0.4"),
        ("Newton", "Picard"),
        ('"format": 1', '"format": 0'),
    ):
        file.write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match="damaged"):
            ib.load(tmp_path / "net")
    for bad in (text[:-40], "", "[]", "null", '{"format": 1}'):
        file.write_text(bad)
        with pytest.raises(ValueError, match=r"structure\.json is damaged"):
            ib.load(tmp_path / "net")
    file.write_text(text.replace('"format": 1', '"format": 99'))
    with pytest.raises(ValueError, match="later version.*update ibnn_jax"):
        ib.load(tmp_path / "net")


def test_weights_of_another_network_are_noticed(tmp_path):
    for name in ("ucn", "lite"):
        ib.save(NETWORKS[name](), tmp_path / name)
    weights = (tmp_path / "lite" / "weights.safetensors").read_bytes()
    (tmp_path / "ucn" / "weights.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match="not as they were saved together"):
        ib.load(tmp_path / "ucn")


@pytest.mark.parametrize("missing", ["structure.json", "weights.safetensors", "net"])
def test_what_is_missing_is_named(missing, tmp_path):
    ib.save(NETWORKS["ucn"](), tmp_path / "net")
    if missing == "net":
        (tmp_path / "net").rename(tmp_path / "other")
    else:
        (tmp_path / "net" / missing).unlink()
    named = "structure.json" if missing == "net" else missing
    with pytest.raises(FileNotFoundError, match=f"not a network saved .* no {named}"):
        ib.load(tmp_path / "net")


class Unknown(nnx.Module):
    def __init__(self, rngs):
        self.head = nnx.Linear(36, 3, rngs=rngs)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Unknown(nnx.Rngs(0)), "Unknown cannot be saved: decorate its class"),
        (lambda: {"w": 1}, r"save takes an nnx\.Module; got dict"),
        (
            lambda: ib.IBNNLinear(3, 4, activation=lambda x: x, **RNGS),
            "its activation, <function .*lambda.*has no name that load knows: mark it",
        ),
        (
            lambda: ib.UCN((6, 6, 1), 3, neuron=lambda rngs: nnx.Dropout(0), **RNGS),
            "its neuron, .*functools.partial",
        ),
        (
            lambda: ib.UCN(np.array([6, 6, 1]), 3, **RNGS),
            r"UCN cannot be saved: .*zeros .*got \[0 0 0\]\. Give sizes as a tuple",
        ),
    ],
)
def test_what_cannot_be_saved_is_refused_when_it_is_saved(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ib.save(make(), tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_a_network_changed_by_hand_is_refused(tmp_path):
    model = NETWORKS["newton"]()
    model.blocks[1].implicit.solver = ib.Picard()
    with pytest.raises(ValueError, match=r"blocks\.1\.implicit\.solver was changed"):
        ib.save(model, tmp_path / "net")
    model = NETWORKS["ucn"]()
    model.head.kernel = nnx.Param(jnp.zeros((5, 3)))
    with pytest.raises(
        ValueError, match=r"head\.kernel of shape \(5, 3\), where .*108"
    ):
        ib.save(model, tmp_path / "net")
    # One network of an ensemble is what can be saved.
    ensemble = nnx.vmap(lambda key: ib.UCN((6, 6, 1), 3, rngs=nnx.Rngs(key)))(
        jax.random.split(jax.random.key(0), 2)
    )
    with pytest.raises(ValueError, match="of shape"):
        ib.save(ensemble, tmp_path / "net")
    graph, state = nnx.split(ensemble)
    one = nnx.merge(graph, jax.tree.map(lambda x: x[1], state))
    ib.save(one, tmp_path / "net")
    np.testing.assert_array_equal(ib.load(tmp_path / "net").lams(), one.lams())


def test_a_class_is_to_be_imported_before_it_is_loaded(tmp_path):
    ib.save(NETWORKS["own"](), tmp_path / "net")
    file = tmp_path / "net" / "structure.json"
    structure = json.loads(file.read_text())
    digest = structure.pop("digest")
    assert digest.startswith("sha256:")
    with pytest.raises(
        ValueError, match="'Elsewhere' is not known here: import the mod"
    ):
        ib.nn.recipe.build(structure["model"] | {"build": "Elsewhere"})
    unknown = ("jax.numpy.save", "os.system", "builtins.eval", "jax.nn.nothing")
    for name in (*unknown, "__class__", "jax.nn.__class__"):
        with pytest.raises(ValueError, match="is not known here"):
            ib.nn.recipe.decode({"name": name})


def test_a_name_belongs_to_one_thing():
    with pytest.raises(ValueError, match="the name 'UCN' belongs to"):
        ib.saveable(Unknown, "UCN")
    assert ib.saveable(squashed) is squashed  # again, as in a notebook


def test_keys_are_arguments_as_any_other(tmp_path):
    model = FromKey(jax.random.key(3), jax.random.split(jax.random.key(4), 2))
    ib.save(model, tmp_path / "model")
    found = ib.load(tmp_path / "model")
    np.testing.assert_array_equal(found.w[...], model.w[...])
