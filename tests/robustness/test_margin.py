"""The margins are bounds that a saturated layer attains."""

import jax.numpy as jnp
import numpy as np
import pytest

import ibnn_jax as ib
from ibnn_jax import robustness


def moved(y, lam):
    """How far a layer with p = 1 moves y."""
    z = ib.solve(y, lam, 1.0, ib.Uniform((-1,)), solver=ib.Newton()).value
    return jnp.linalg.norm(z - y)


@pytest.mark.parametrize("n, size", [(2, 0.7071), (5, 1.2649), (30, 3.1605)])
def test_a_saturated_layer_attains_the_sharper_margin(n, size):
    y = 100.0 * jnp.arange(n)[None]  # sigma of every difference is 1 in float64
    lam = 0.4
    lost = robustness.transfer_margin(0.0, lam, n)
    np.testing.assert_allclose(lost, -2 * lam * size, rtol=1e-4)
    np.testing.assert_allclose(2 * moved(y, lam), -lost, rtol=1e-9)


def test_no_layer_moves_its_input_further():
    y = jnp.asarray(np.random.default_rng(0).normal(size=(1, 30)) * 5)
    for lam in (-3.0, -0.1, 0.3):
        assert 2 * moved(y, lam) <= -robustness.transfer_margin(0.0, lam, 30)


def test_the_papers_margin_is_weaker_by_the_root_of_3():
    sharper = robustness.transfer_margin(1.0, -0.01, 784, groups=3)
    paper = robustness.paper_transfer_margin(1.0, -0.01, 784, groups=3)
    assert paper < sharper < 1
    np.testing.assert_allclose(paper, 1 - 0.02 * np.sqrt(3 * 784))
    np.testing.assert_allclose((1 - paper) / (1 - sharper), np.sqrt(3), rtol=1e-6)
