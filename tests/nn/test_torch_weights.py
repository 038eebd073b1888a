"""The authors' layout, computed by numpy alone in their order of axes, against ours."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

import ibnn_jax as ib

H, W, INPUTS, C, CLASSES, P = 5, 6, 2, 3, 4, 10.0


def state_dict(layers, lam, side=4, seed=0):
    """Random weights under the names that torch would give them."""
    rng = np.random.default_rng(seed)
    state = {}
    for i in range(layers):
        shape = (C, C if i else INPUTS, side, side)
        state[f"conv.{i}.m"] = rng.normal(size=shape) / 4
        state[f"conv.{i}.b"] = rng.normal(size=C) / 4
        if lam is not None:
            state[f"conv.{i}.lam"] = np.array(lam * (i + 1))
        state[f"norm.{i}.weight"] = rng.uniform(0.5, 2, size=C)
        state[f"norm.{i}.bias"] = rng.normal(size=C)
        state[f"norm.{i}.running_mean"] = rng.normal(size=C)
        state[f"norm.{i}.running_var"] = rng.uniform(0.5, 2, size=C)
        state[f"norm.{i}.num_batches_tracked"] = np.array(7)
    state["head.weight"] = rng.normal(size=(CLASSES, C * H * W))
    state["head.bias"] = rng.normal(size=CLASSES)
    return state


def convolved(x, m):
    """x [N, I, H, W] with m [O, I, h, w], stride 1, the smaller padding first."""
    pads = [((s - 1) // 2, s // 2) for s in m.shape[2:]]
    x = np.pad(x, [(0, 0), (0, 0), *pads])
    windows = np.lib.stride_tricks.sliding_window_view(x, m.shape[2:], (2, 3))
    return np.einsum("nihwyx,oiyx->nohw", windows, m)


def solved(y, lam):
    """z = y - lam B(z) for each map of [N, C, H, W], by damped steps."""
    flat = y.reshape(*y.shape[:2], -1)
    z = flat
    for _ in range(2000):
        differences = z[..., None, :] - z[..., :, None]
        z = z + 0.1 * (flat - lam * np.tanh(P * differences).mean(-1) - z)
    return z.reshape(y.shape)


def logits(state, images, sign):
    """The network in torch's order of axes; images [N, I, H, W]."""
    x, layers = images, sum(name.endswith(".m") for name in state)
    for i in range(layers):
        y = convolved(x, state[f"conv.{i}.m"])
        y = y + sign * state[f"conv.{i}.b"][:, None, None]
        if f"conv.{i}.lam" in state:
            y = solved(y, float(state[f"conv.{i}.lam"]))
        mean, var, weight, bias = (
            state[f"norm.{i}.{name}"][:, None, None]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = (np.maximum(y, 0) - mean) / np.sqrt(var + 1e-5) * weight + bias
    return x.reshape(len(x), -1) @ state["head.weight"].T + state["head.bias"]


@pytest.mark.parametrize("side", [4, 3])
@pytest.mark.parametrize("layers, lam", [(1, -0.4), (2, -0.1), (2, None)])
def test_the_logits_are_those_of_the_authors_layout(layers, lam, side):
    state = state_dict(layers, lam, side)
    images = np.random.default_rng(1).uniform(size=(3, INPUTS, H, W))
    neuron = partial(ib.ImplicitBias, p=P, solver=ib.Newton())
    model = ib.from_torch_state_dict(state, (H, W, INPUTS), neuron=neuron)
    found = model(jnp.asarray(images.transpose(0, 2, 3, 1), jnp.float32))
    expected = logits(state, images, sign=-1)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
    lams = [] if lam is None else [lam * (i + 1) for i in range(layers)]
    np.testing.assert_allclose(np.array(model.lams()), lams, rtol=1e-6)
    # The sign of b matters, and can be told.
    added = ib.from_torch_state_dict(
        state, (H, W, INPUTS), neuron=neuron, subtract_bias=False
    )
    found = added(jnp.asarray(images.transpose(0, 2, 3, 1), jnp.float32))
    np.testing.assert_allclose(found, logits(state, images, 1), rtol=2e-4, atol=2e-4)
    assert np.abs(logits(state, images, 1) - expected).max() > 0.1


class Tensor:
    """What a torch tensor offers to numpy."""

    def __init__(self, value):
        self.value = value

    def detach(self):
        return self

    def cpu(self):
        return self

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.value, dtype)


def test_tensors_and_other_names_are_taken_and_the_result_can_be_saved(tmp_path):
    state = state_dict(1, -0.4)
    other = {
        "sequential." + k.replace(".m", ".weight"): Tensor(v) for k, v in state.items()
    }
    a = ib.from_torch_state_dict(state, (H, W, INPUTS))
    b = ib.from_torch_state_dict(other, (H, W, INPUTS))
    images = jnp.ones((2, H, W, INPUTS), jnp.float32)
    np.testing.assert_array_equal(a(images), b(images))
    ib.save(a, tmp_path / "net")
    np.testing.assert_array_equal(ib.load(tmp_path / "net")(images), a(images))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"conv.0.b": None}, "as many of each for its L layers; got .*'vectors b': 1"),
        ({"conv.1.lam": None}, "as many of each for its L layers; got .*'lams': 1"),
        ({"conv.0.b": np.ones(5)}, r"b 0 should have shape \(3,\); got \(5,\)"),
        (
            {"conv.1.m": np.ones((3, 2, 4, 4))},
            r"kernel 1 should have shape \(3, 3, 4, 4",
        ),
        ({"conv.0.m": np.ones((3, 2, 4, 5))}, r"kernel 0 should have shape"),
        (
            {"norm.1.running_var": None},
            "running_var of batch norm 1 should .* got None",
        ),
        ({"head.weight": np.ones((4, 80))}, r"the head, for images \(5, 6, 2\) should"),
        ({"head.bias": np.ones(5)}, r"the bias of the head should have shape \(4,\)"),
        ({"head.weight": None}, "one head, a weight of 2 axes"),
        ({"other.weight": np.ones((4, 9))}, "one head, a weight of 2 axes"),
        ({"queries": np.ones((2, 3, 4))}, "queries of shape .* is of no known kind"),
    ],
)
def test_what_is_no_ucn_is_refused(change, message):
    state = {k: v for k, v in (state_dict(2, -0.1) | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        ib.from_torch_state_dict(state, (H, W, INPUTS))


@pytest.mark.parametrize(
    "wrap, message",
    [
        (
            lambda state: {"state_dict": state, "epoch": 3},
            r"'state_dict' \(dict\), 'epoch' \(int\)\. .*checkpoint\[\"state_dict\"\]",
        ),
        (
            lambda state: {"model": state},
            r"at 'model' \(dict\)\. Of a whole checkpoint",
        ),
        (lambda state: state | {"best": None}, r"at 'best' \(NoneType\)"),
        (lambda state: state | {3: state["head.bias"]}, r"at 3 \(ndarray\)"),
        (lambda state: [*state.values()], r"model\.state_dict\(\).*got list"),
        (lambda state: "ucn.pt", "must be a dict of names and arrays.*got str"),
        (lambda state: state | {"tag": np.array(["a"])}, "tag must be real numbers"),
        (
            lambda state: state | {"head.bias": 1j * np.ones(4)},
            "head.bias must be real",
        ),
    ],
)
def test_a_checkpoint_is_told_from_its_state_dict(wrap, message):
    with pytest.raises(ValueError, match=message):
        ib.from_torch_state_dict(wrap(state_dict(2, -0.1)), (H, W, INPUTS))


def test_the_order_of_the_dict_does_not_matter_where_names_have_numbers():
    """safetensors gives arrays back in an order of its own."""
    state = state_dict(2, -0.1, 3)
    images = np.random.default_rng(1).uniform(size=(3, H, W, INPUTS))
    orders = state, dict(sorted(state.items())), dict(sorted(state.items())[::-1])
    models = [ib.from_torch_state_dict(each, (H, W, INPUTS)) for each in orders]
    first, *others = [model(jnp.asarray(images, jnp.float32)) for model in models]
    for found in others:
        np.testing.assert_array_equal(found, first)
