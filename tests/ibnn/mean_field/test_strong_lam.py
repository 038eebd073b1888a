"""MeanField far below the uniqueness bound and next to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ibnn_jax as ib


@pytest.mark.parametrize("n", [40, 200])
@pytest.mark.parametrize("kind", ["wide", "cauchy"])
def test_steep_groups_in_float32_are_solved_and_say_how_well(n, kind):
    """lam p = 5000: z has to be as fine as its own size allows, not that of y."""
    rng = np.random.default_rng(0)
    size = (12, n)
    y = 10 * rng.normal(size=size) if kind == "wide" else rng.standard_cauchy(size)
    y = y.astype(np.float32)
    lam, p = -50.0, 100.0
    solution = ib.solve(jnp.asarray(y), lam, p, ib.Uniform((-1,)))
    assert solution.stats.converged.all()
    z, y = np.float64(solution.value), np.float64(y)
    told, allowed = solution.stats.residual, 1e-4 * (1 + abs(y).max(1) + abs(lam))
    for k in range(12):
        bias = np.tanh(p * (z[k][None, :] - z[k][:, None])).mean(1)
        residual = abs(y[k] - lam * bias - z[k]).max()
        assert residual < 1.5 * told[k] and residual < allowed[k]


@pytest.mark.parametrize("kind", ["constant", "apart"])
@pytest.mark.parametrize("share", [0.99, 0.999])
def test_gradients_right_below_the_bound(kind, share):
    """There Y' is as small as 1 - lam p, and T is no jump."""
    p, n = 100.0, 129
    y = np.zeros((1, n)) if kind == "constant" else 0.03 * np.eye(1, n)
    y, v = jnp.asarray(y), np.random.default_rng(0).normal(size=(1, n))

    def gradient(solver):
        def loss(y):
            z = ib.implicit_bias(y, share / p, p, ib.Uniform((-1,)), solver=solver)
            return (v * z).sum()

        return jax.grad(loss)(y)

    error = jnp.linalg.norm(gradient(ib.MeanField()) - gradient(ib.Newton()))
    assert error < 0.01 * jnp.linalg.norm(gradient(ib.Newton()))


@pytest.mark.parametrize("n", [63, 100, 400, 25_000])
@pytest.mark.parametrize("share", [0.9, 0.99])
def test_gradients_of_a_clump_beside_an_outlier_below_the_bound(n, share):
    """There z is steep, and what is a small residual elsewhere spoils its slope."""
    p, rng = 10.0, np.random.default_rng(0)
    y = np.concatenate([
        deviation * rng.normal(size=(4, n)) + apart * np.eye(1, n)
        for deviation, apart in ((0, 0.1), (0, 1), (1e-4, 0.3), (1e-3, 3), (0.01, 1))
    ])  # fmt: skip
    v = rng.normal(size=y.shape)

    def gradients(solver, dtype):
        def loss(y, lam, p):
            z = ib.implicit_bias(y, lam, p, ib.Uniform((-1,)), solver=solver)
            return (jnp.asarray(v, dtype) * z).sum()

        per_group = jnp.ones((len(y), 1), dtype)
        arguments = jnp.asarray(y, dtype), share / p * per_group, p * per_group
        return jax.grad(loss, (0, 1, 2))(*arguments)

    u, by_lam, _ = (np.asarray(g) for g in gradients(ib.MeanField(), jnp.float32))
    if n > 20_000:  # too large for pairs, which would tell
        assert np.isfinite(u).all()
        return
    exact, exact_by_lam, _ = gradients(ib.Newton(), jnp.float64)
    assert (abs(u - exact).max(1) < 0.01 * abs(exact).max(1)).all()
    z = np.asarray(ib.solve(jnp.asarray(y), share / p, p, ib.Uniform((-1,))).value)
    x = p * (z[:, None, :] - z[:, :, None])
    terms = abs((exact - exact.mean(1, keepdims=True)) * np.tanh(x).mean(-1)).sum(1)
    allowed = np.maximum(0.03 * abs(exact_by_lam[:, 0]), 0.02 * terms)
    assert (abs(by_lam - exact_by_lam)[:, 0] < allowed).all()


def test_outliers_under_a_strong_lam_outlast_a_rising_residual():
    shares = (np.arange(200) + 0.5) / 200
    y = jnp.asarray(10 * np.tan(np.pi * (shares - 0.5)))[None]  # quantiles of Cauchy
    assert ib.solve(y, -50.0, 100.0, ib.Uniform((-1,))).stats.converged.all()


@pytest.mark.parametrize("deviation", [0.3, 1.0])
def test_without_pairs_a_strong_lam_stays_on_a_grid_that_is_fine_enough(deviation):
    rng = np.random.default_rng(0)
    y, v = jnp.asarray(rng.normal(size=(2, 24, 784)), jnp.float32)
    solver = ib.MeanField(pairwise_max_size=0)

    def loss(y):
        solution = ib.implicit_bias(
            y, -20.0, 10.0, ib.Uniform((-1,)), solver=solver, return_solution=True
        )
        return (v * solution.value).sum(), solution.stats.converged

    u, converged = jax.grad(loss, has_aux=True)(deviation * y)
    assert converged.all() and jnp.isfinite(u).all()


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("deviation", [0.01, 3.0])
def test_without_lam_the_layer_is_the_standard_one(deviation, offset):
    """Wide groups take their z from a grid, and yet y comes back bit by bit."""
    y = deviation * np.random.default_rng(0).normal(size=(2, 784)) + offset
    y = jnp.asarray(y, jnp.float32)
    solution = ib.solve(y, 0.0, 10.0, ib.Uniform((-1,)))
    assert (solution.value == y).all() and solution.stats.converged.all()


@pytest.mark.parametrize("lam", [0.095, -2.0])
def test_rounding_only_adds_to_what_is_told(lam):
    """Also where lam > 0, which flattens the residual, beside a large offset."""
    y = np.random.default_rng(0).normal(size=(4, 784)).astype(np.float32) + 100
    solution = ib.solve(jnp.asarray(y), lam, 10.0, ib.Uniform((-1,)))
    z, y = np.float64(solution.value), np.float64(y)
    for k in range(4):
        bias = np.tanh(10 * (z[k][None, :] - z[k][:, None])).mean(1)
        residual = abs(y[k] - lam * bias - z[k]).max()
        assert residual < 1.5 * solution.stats.residual[k]
