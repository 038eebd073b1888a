"""Where Newton's method on a grid begins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.isotonic import isotonic_regression

import ibnn_jax as ib
from ibnn_jax.ibnn.mean_field import starts
from ibnn_jax.ibnn.mean_field.grid import Grid
from ibnn_jax.ibnn.mean_field.patches import Patches

N = 1200
GRIDS = [Grid(896, 0.3125), Patches(N)]


@pytest.fixture
def x():
    """Spread evenly, and a clump with gaps around it."""
    x = np.random.default_rng(0).normal(size=(2, N))
    x[0] *= 10
    x[1] *= np.where(np.arange(N) % 50 == 0, 30, 0.3)
    return jnp.asarray(x)


def pushed(x, t, q):
    """t + q G(t), with the sums over pairs."""
    return t + q * jnp.tanh(x[:, None, :] - t[:, :, None]).mean(-1)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_function_and_its_slope_are_read_at_the_neurons(grid, x):
    place = grid.place(x)
    bias, slope = place.read_with_slope(grid.bias(place.charges()))
    apart = x[:, None, :] - x[:, :, None]
    assert float(jnp.abs(bias - jnp.tanh(apart).mean(-1)).max()) < grid.error
    true = -(1 - jnp.tanh(apart) ** 2).mean(-1)
    assert float(jnp.abs(slope - true).max()) < 2 * grid.slope_error


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("q", [-200.0, -1.0, 0.9])
def test_neurons_at_rest_solve_their_own_equations(grid, x, q):
    """From wherever they are; linear interpolation errs by some 1% of a step of G."""
    q = jnp.full((2, 1), q)
    y = jnp.asarray(200 * np.random.default_rng(1).normal(size=x.shape))
    t = starts.at_rest(grid, x, y, q)
    assert (jnp.abs(pushed(x, t, q) - y) < 0.08 * jnp.abs(q)).all()
    assert (jnp.median(jnp.abs(pushed(x, t, q) - y)) < 0.002 * jnp.abs(q)).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_errors_to_both_sides_are_relaxed_at_once(grid):
    rng = np.random.default_rng(2)
    x, q = jnp.asarray(5 * rng.normal(size=(1, N))), jnp.full((1, 1), -3.0)
    y = pushed(x, x, q)
    off = x + 0.05 * jnp.asarray(np.where(rng.random(x.shape) < 0.5, -1, 1))
    found = starts.relaxed(grid, off, y, q)
    assert float(jnp.abs(found - x).max()) < 0.1 * 0.05


@pytest.mark.parametrize("n", [1, 2, 20])
def test_few_neurons_are_pooled_by_isotonic_regression(n):
    rng = np.random.default_rng(3)
    ys = 10 * rng.standard_cauchy(size=(6, n))
    qs = np.array([0, -1, -10, -100, -1e3, -1e4])[:, None]
    found = starts.pooled(jnp.asarray(ys), jnp.asarray(qs))
    for y, q, x in zip(ys, qs, found):
        order = np.argsort(y)
        expected = isotonic_regression(y[order] - q * (1 - (2 * np.arange(n) + 1) / n))
        assert np.allclose(x[order], expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("lam, p", [(-2.0, 100.0), (-50.0, 10.0)])
def test_heavy_tails_under_a_strong_lam_need_no_pairs(lam, p):
    rng = np.random.default_rng(4)
    tails = np.stack([rng.standard_cauchy(size=N), np.exp(2 * rng.normal(size=N))])
    y = jnp.asarray(np.concatenate([tails, 10 * tails]), jnp.float32)
    solver = ib.MeanField(pairwise_max_size=0)

    @jax.jit
    def call(y):
        def loss(y):
            solution = ib.implicit_bias(
                y, lam, p, ib.Uniform((-1,)), solver=solver, return_solution=True
            )
            return (solution.value**2).sum(), solution

        return jax.grad(loss, has_aux=True)(y)

    gradient, solution = call(y)
    assert solution.stats.converged.all() and jnp.isfinite(gradient).all()
    z, y = (a.astype(float) for a in (solution.value, y))
    residual = jnp.abs(ib.inverse(z, lam, p, ib.Uniform((-1,))) - y).max(-1)
    assert (residual <= 1e-4 * (1 + jnp.abs(y).max(-1) + abs(lam))).all()
