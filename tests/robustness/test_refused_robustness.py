"""Bad calls of the theory, each refused in one line that says what would be right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ibnn_jax as ib
from ibnn_jax import robustness

X = jnp.ones((3, 4))
UNIFORM = ib.Uniform((-1,))
GAIN = {"z": X, "direction": X, "lam": -0.1, "p": 5.0, "coupling": UNIFORM}
SPECTRUM = {k: v for k, v in GAIN.items() if k != "direction"}
CURVATURE = {"loss": lambda x: (x**2).sum(1), "x": X, "key": jax.random.key(0)}
JACOBIAN = {"logits": lambda x: x[:, :2], "images": X}
NORM = nnx.BatchNorm(4, rngs=nnx.Rngs(0))  # in training mode
MARGIN = {"margin": 1.0, "lam": -0.1, "n": 4}

CALLS = [
    (robustness.input_curvature, CURVATURE | {"h": 0}, "h must be .*greater than 0"),
    (robustness.input_curvature, CURVATURE | {"h": np.nan}, "h must be a finite"),
    (robustness.input_curvature, CURVATURE | {"h": "small"}, "h must be real num"),
    (robustness.input_curvature, CURVATURE | {"probes": 0}, "probes must be at l"),
    (robustness.input_curvature, CURVATURE | {"probes": 2.5}, "probes must be a wh"),
    (robustness.input_curvature, CURVATURE | {"key": 0}, "one key"),
    (robustness.input_curvature, CURVATURE | {"x": X.astype(int)}, "x must be float"),
    (robustness.input_curvature, CURVATURE | {"x": 1.0}, "x must be an array"),
    (robustness.input_curvature, CURVATURE | {"loss": jnp.sum}, "one value per input"),
    (
        robustness.input_curvature,
        CURVATURE | {"loss": lambda x: NORM(x).sum(1)},
        r"call model\.eval\(\) first",
    ),
    (
        robustness.input_jacobian_norm,
        JACOBIAN | {"logits": NORM},
        r"call model\.eval\(\) first",
    ),
    (
        robustness.input_jacobian_norm,
        JACOBIAN | {"batch_size": 0},
        "batch_size must be",
    ),
    (robustness.input_jacobian_norm, JACOBIAN | {"batch_size": 2.5}, "batch_size must"),
    (robustness.input_jacobian_norm, JACOBIAN | {"images": [1.0]}, "got list: convert"),
    (robustness.gain_spectrum, SPECTRUM | {"p": 0.0}, "p must be positive"),
    (robustness.gain_spectrum, SPECTRUM | {"z": X.astype(int)}, "floating"),
    (robustness.gain_spectrum, SPECTRUM | {"lam": 1j}, "lam must be real"),
    (robustness.gain_spectrum, SPECTRUM | {"lam": jnp.ones(2)}, "broadcast"),
    (robustness.gain_spectrum, SPECTRUM | {"coupling": "all"}, "coupling must be"),
    (robustness.gain, GAIN | {"p": -1.0}, "p must be positive"),
    (robustness.gain, GAIN | {"direction": X[:, :2]}, "shape"),
    (robustness.gain, GAIN | {"coupling": None}, "coupling must be"),
    (robustness.curvature_ratio, {"lam": -0.1, "p": 0.0}, "p must be positive"),
    (robustness.curvature_ratio, {"lam": -0.1, "p": "10"}, "p must be real numbers"),
    (
        robustness.predicted_curvature_ratio,
        {"lam": -0.1, "p": -10.0},
        "p must be positive",
    ),
    (robustness.transfer_margin, MARGIN | {"n": 0}, "n must be at least 1"),
    (robustness.transfer_margin, MARGIN | {"n": 4.0}, "n must be a whole number"),
    (robustness.transfer_margin, MARGIN | {"groups": 0}, "groups must be at least 1"),
    (robustness.paper_transfer_margin, MARGIN | {"n": -1}, "n must be at least 1"),
    (
        robustness.paper_transfer_margin,
        MARGIN | {"groups": 1.5},
        "groups must be a whole",
    ),
]


@pytest.mark.parametrize("function, arguments, message", CALLS)
def test_bad_calls(function, arguments, message):
    with pytest.raises(ValueError, match=message) as refusal:
        function(**arguments)
    assert "\n" not in str(refusal.value)
