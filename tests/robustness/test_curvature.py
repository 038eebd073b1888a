"""The curvature of a loss, measured on a quadratic and predicted for one layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ibnn_jax as ib
from ibnn_jax import robustness


def test_curvature_of_a_quadratic_is_known():
    rng = np.random.default_rng(2)
    a = jnp.asarray(rng.normal(size=(6, 6)))
    x = jnp.asarray(rng.normal(size=(5, 6)))
    hessian = a + a.T

    def loss(x):
        return 0.5 * jnp.einsum("ni,ij,nj->n", x, hessian, x)

    found = robustness.input_curvature(loss, x, jax.random.key(0), h=0.1, probes=4000)
    expected = 0.1**2 * (hessian**2).sum()  # E |H g|^2 = |H|_F^2
    np.testing.assert_allclose(found, jnp.full(5, expected), rtol=0.1)


@pytest.mark.parametrize("lam", [-2.0, -0.5, -0.1, -0.02, 0.05, 0.095])
def test_a_flat_layer_has_the_exact_ratio(lam):
    """The gain of deviations from the mean, squared, where all neurons are equal."""
    n, p = 40, 10.0
    direction = jnp.asarray(np.random.default_rng(5).normal(size=(3, n)))
    direction -= direction.mean(1, keepdims=True)
    z = jnp.full((3, n), 0.3)  # flat inputs are their own solutions
    found = robustness.gain(z, direction, lam, p, ib.Uniform((-1,))) ** 2
    np.testing.assert_allclose(found, robustness.curvature_ratio(lam, p), rtol=1e-6)


def test_the_papers_ratio_is_the_first_order_of_the_exact_one():
    p = 10.0
    for lam in (-1e-3, 1e-3):
        exact = float(robustness.curvature_ratio(lam, p))
        paper = robustness.predicted_curvature_ratio(lam, p)
        assert abs(exact - paper) < 3 * (lam * p) ** 2
    # Far from 0 it has the wrong size: the figures of a trained network's lam.
    assert robustness.predicted_curvature_ratio(-0.5, p) == 16
    np.testing.assert_allclose(robustness.curvature_ratio(-0.5, p), 1 / 36)


def test_whole_numbers_have_a_ratio():
    np.testing.assert_allclose(robustness.curvature_ratio(-1, 10), 1 / 121)
    found = robustness.curvature_ratio(jnp.array([-1, 0]), 10)
    np.testing.assert_allclose(found, [1 / 121, 1])


def test_no_inputs_have_no_curvature():
    found = robustness.input_curvature(
        lambda x: (x**2).sum((1, 2)), jnp.zeros((0, 3, 2)), jax.random.key(0)
    )
    assert found.shape == (0,)


def test_no_ratio_is_predicted_where_a_flat_solution_is_not_stable():
    found = robustness.curvature_ratio(jnp.array([0.05, 0.1, 0.2]), 10.0)
    np.testing.assert_array_equal(jnp.isnan(found), [False, True, True])
