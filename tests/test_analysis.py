"""The paper's theory checked on small cases, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ibnn_jax as ib
from ibnn_jax import analysis

COUPLINGS = {
    "uniform": ib.Uniform((-1,)),
    "dense": ib.Dense(np.full((12, 12), 1 / 12) + np.eye(12) / 24),
}


@pytest.mark.parametrize("coupling", COUPLINGS.values(), ids=COUPLINGS)
@pytest.mark.parametrize("lam", [-2.0, 0.05])
def test_the_spectrum_is_that_of_the_jacobian(coupling, lam):
    y = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12)) * 0.3)
    solve = lambda y: ib.implicit_bias(
        y, lam, 5.0, coupling, solver=ib.Newton(), adjoint=ib.Implicit(any_order=True)
    )
    z = solve(y)
    found = analysis.gain_spectrum(z, lam, 5.0, coupling)
    for g in range(2):
        jacobian = jax.jacrev(lambda y: solve(y[None])[0])(y[g])
        np.testing.assert_allclose(
            found[g], jnp.linalg.eigvalsh((jacobian + jacobian.T) / 2), atol=1e-8
        )
    assert (
        (found[:, -1] <= 1 + 1e-9).all() if lam < 0 else (found[:, 0] >= 1 - 1e-9).all()
    )


def test_the_gain_is_at_most_the_norm_and_never_more_than_1_below_zero():
    rng = np.random.default_rng(1)
    y, direction = jnp.asarray(rng.normal(size=(2, 4, 20)))
    coupling = ib.Uniform((-1,))
    for lam in (-1.0, 0.05):
        z = ib.solve(y, lam, 5.0, coupling, solver=ib.Newton()).value
        found, norm = (
            analysis.gain(z, direction, lam, 5.0, coupling),
            analysis.gain_spectrum(z, lam, 5.0, coupling)[:, -1],
        )
        assert found.shape == (4,) and (found <= norm * (1 + 1e-9)).all()
        assert (found <= 1 + 1e-9).all() if lam < 0 else (found >= 1 - 1e-9).all()


def test_curvature_of_a_quadratic_is_known():
    a = jnp.asarray(np.random.default_rng(2).normal(size=(6, 6)))
    hessian = a + a.T
    loss = lambda x: 0.5 * jnp.einsum("ni,ij,nj->n", x, hessian, x)
    x = jnp.asarray(np.random.default_rng(3).normal(size=(5, 6)))
    found = analysis.input_curvature(loss, x, jax.random.key(0), h=0.1, probes=4000)
    np.testing.assert_allclose(
        found, 0.01 * (hessian**2).sum() * jnp.ones(5), rtol=0.1
    )  # E|H g|^2 = |H|_F^2
    with pytest.raises(ValueError, match="positive"):
        analysis.input_curvature(loss, x, jax.random.key(0), h=0)


def test_one_layer_in_the_linear_range_has_the_predicted_ratio():
    """Eq. (62): an IBNN layer of tiny activations multiplies the deviations from their mean by about 1 + lam p."""
    lam, p, n = -0.02, 5.0, 400
    y = jnp.asarray(np.random.default_rng(4).normal(size=(3, n)) * 1e-3)
    direction = jnp.asarray(np.random.default_rng(5).normal(size=(3, n)))
    direction -= direction.mean(1, keepdims=True)
    z = ib.solve(y, lam, p, ib.Uniform((-1,)), solver=ib.Newton()).value
    found = analysis.gain(z, direction, lam, p, ib.Uniform((-1,))) ** 2
    np.testing.assert_allclose(
        found, analysis.predicted_curvature_ratio(lam, p), rtol=0.03
    )
