"""The spectrum and the gains of the layer's Jacobian, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ibnn_jax as ib
from ibnn_jax import robustness

COUPLINGS = {
    "uniform": ib.Uniform((-1,)),
    "dense": ib.Dense(np.full((12, 12), 1 / 12) + np.eye(12) / 24),
}


@pytest.mark.parametrize("coupling", COUPLINGS.values(), ids=COUPLINGS)
@pytest.mark.parametrize("lam", [-2.0, 0.05])
def test_the_spectrum_is_that_of_the_jacobian(coupling, lam):
    y = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12)) * 0.3)

    def solve(y):
        adjoint = ib.Implicit(any_order=True)
        return ib.implicit_bias(
            y, lam, 5.0, coupling, solver=ib.Newton(), adjoint=adjoint
        )

    z = solve(y)
    found = robustness.gain_spectrum(z, lam, 5.0, coupling)
    for g in range(2):
        jacobian = jax.jacrev(lambda y: solve(y[None])[0])(y[g])
        expected = jnp.linalg.eigvalsh((jacobian + jacobian.T) / 2)
        np.testing.assert_allclose(found[g], expected, atol=1e-8)
    if lam < 0:
        assert (found[:, -1] <= 1 + 1e-9).all()
    else:
        assert (found[:, 0] >= 1 - 1e-9).all()


@pytest.mark.parametrize("lam", [-1.0, 0.05])
def test_the_gain_is_at_most_the_norm_and_never_more_than_1_below_zero(lam):
    rng = np.random.default_rng(1)
    y = jnp.asarray(rng.normal(size=(4, 20)))
    direction = jnp.asarray(rng.normal(size=(4, 20)))
    coupling = ib.Uniform((-1,))
    z = ib.solve(y, lam, 5.0, coupling, solver=ib.Newton()).value
    gain = robustness.gain(z, direction, lam, 5.0, coupling)
    norm = robustness.gain_spectrum(z, lam, 5.0, coupling)[:, -1]
    assert gain.shape == (4,)
    assert (gain <= norm * (1 + 1e-9)).all()
    assert (gain <= 1 + 1e-9).all() if lam < 0 else (gain >= 1 - 1e-9).all()


def test_the_spectrum_has_the_axes_of_the_groups():
    z = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3, 4, 5)))
    found = robustness.gain_spectrum(z, -0.5, 10.0, ib.Uniform((1, 2)))
    assert found.shape == (2, 5, 12)
    np.testing.assert_allclose(found[..., -1], 1, atol=1e-9)


def test_the_spectrum_under_strict_promotion():
    z = jnp.ones((2, 5), jnp.float16)
    strict_dtypes = jax.numpy_dtype_promotion("strict")
    with strict_dtypes, jax.numpy_rank_promotion("raise"):
        found = robustness.gain_spectrum(z, -0.5, 10.0, ib.Uniform((-1,)))
    assert found.shape == (2, 5)


LENGTHS = {
    jnp.float16: (1.0, 1e-4, 200.0),
    jnp.float32: (1.0, 1e-4, 200.0, 1e-25, 1e19),
}


@pytest.mark.parametrize(
    "dtype, length", [(dtype, x) for dtype, each in LENGTHS.items() for x in each]
)
def test_the_length_of_the_direction_does_not_matter(dtype, length):
    z, direction = jnp.array([0.1, 0.3, -0.2], dtype), jnp.array([1, 2, 0], dtype)
    found = robustness.gain(z, dtype(length) * direction, -0.5, 3.0, ib.Uniform((-1,)))
    np.testing.assert_allclose(found, 0.8856, rtol=2e-3)
