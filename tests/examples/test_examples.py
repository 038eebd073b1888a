"""Every example runs with a tiny budget, and is short."""

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(
    path.stem
    for path in (ROOT / "examples").glob("*.py")
    if path.stem not in ("__init__", "data")
)
SMALL = {  # options that make an example tiny; all take steps
    "resnet": {"channels": 2, "blocks": 1},
    "transformer": {"width": 8, "blocks": 1},
    "ensemble": {"seeds": 2},
    "nemon": {"features": 6},
}


@pytest.fixture(autouse=True)
def float32():
    with jax.enable_x64(False):
        yield


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_and_says_what_it_is(name):
    text = (ROOT / "examples" / f"{name}.py").read_text()
    assert text.startswith('"""')
    assert text.count("\n") <= 60


@pytest.mark.parametrize("name", [n for n in EXAMPLES if n != "export"])
def test_an_example_runs(name):
    example = importlib.import_module(f"examples.{name}")
    found = example.main(steps=2, **SMALL.get(name, {}))
    values = found.values() if isinstance(found, dict) else np.ravel(found)
    assert all(np.isfinite(value) for value in values)


def test_an_exported_network_gives_probabilities(tmp_path, capsys):
    pytest.importorskip("flatbuffers")
    example = importlib.import_module("examples.export")
    served = example.main(str(tmp_path / "network.jax"), steps=1)
    np.testing.assert_allclose(served.sum(1), np.ones(7), rtol=1e-5)
    assert "difference" in capsys.readouterr().out


def test_the_quick_start_learns():
    accuracies = importlib.import_module("examples.quickstart").main(steps=100)
    assert min(accuracies.values()) > 0.8  # 1 in 3 by chance
