"""Gradients of lam and p of MeanField, and of w of a Dense coupling, against dense
float64 systems.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ibnn_jax as ib

UNIFORM = ib.Uniform((-1,))


def exact(z, y, lam, p, v):
    """(dL/dy, (dL/dlam, its terms), (dL/dp, its terms)) by dense Newton from z."""
    n = len(y)
    for _ in range(30):
        t = z[None, :] - z[:, None]
        tanh = np.tanh(p * t)
        slope = (1 - tanh**2) / n
        hessian = np.eye(n) + lam * p * (slope - np.diag(slope.sum(1)))
        r = y - lam * tanh.mean(1) - z
        z = z + np.linalg.solve(hessian, r)
    assert abs(r).max() < 1e-11 * (1 + abs(y).max())
    u = np.linalg.solve(hessian, v)
    free = u - u.mean()  # sum B = sum dB/dp = 0
    return u, -free * tanh.mean(1), -lam * free * (slope * t).sum(1)


def check(y, lam, p, v, dtype=jnp.float32):
    """MeanField on groups y [G, n] with lam, p [G]."""
    y, v = (np.asarray(jnp.asarray(x, dtype), float) for x in (y, v))

    @jax.jit
    def gradients(y, lam, p):
        def loss(y, lam, p):
            solution = ib.implicit_bias(
                y, lam, p, UNIFORM, solver=ib.MeanField(), return_solution=True
            )
            return (v.astype(dtype) * solution.value).sum(), solution

        return jax.grad(loss, (0, 1, 2), has_aux=True)(y, lam, p)

    inputs = [jnp.asarray(x, dtype) for x in (y, lam[:, None], p[:, None])]
    (by_y, by_lam, by_p), found = gradients(*inputs)
    assert found.stats.converged.all()
    for k in range(len(y)):
        z = np.asarray(found.value[k], float)
        u, *terms = exact(z, y[k], float(inputs[1][k, 0]), float(inputs[2][k, 0]), v[k])
        assert abs(by_y[k] - u).max() <= 0.01 * abs(u).max(), k
        for gradient, term in zip((by_lam, by_p), terms):
            allowed = max(0.03 * abs(term.sum()), 0.02 * abs(term).sum())
            assert abs(float(gradient[k, 0]) - term.sum()) <= allowed, k


def test_small_and_large_lam_of_one_width():
    rng = np.random.default_rng(0)
    y, v = rng.normal(size=(2, 2, 300)) + np.array([0, 1])[:, None, None]
    check(y, np.array([-0.02, -20.0]), np.full(2, 10.0), v)


def test_lam_of_zero_beside_wide_inputs():
    rng = np.random.default_rng(0)
    y, v = 30 * rng.normal(size=(1, 784)), rng.normal(size=(1, 784)) + 1
    check(y, np.array([0.0]), np.array([30.0]), v)


@pytest.mark.parametrize("kind", ["normal", "ties", "outlier"])
def test_inputs_of_every_width(kind):
    rng = np.random.default_rng(1)
    lam, p, spread = (
        x.ravel()
        for x in np.meshgrid([-20.0, -2.0, -0.02, 1.0], [1.0, 20.0], [0.1, 1.0, 10.0])
    )
    lam = np.where(lam > 0, 0.8 / p, lam)
    y, v = rng.normal(size=(2, len(lam), 160))
    if kind == "ties":
        y = np.where(rng.random(y.shape) < 0.6, -0.3, y)
    if kind == "outlier":
        y[:, 0] = 20
    check(spread[:, None] * y, lam, p, v + 1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_gradient_of_w_as_a_jit_argument_and_under_vmap(dtype):
    rng = np.random.default_rng(2)
    w = rng.random((3, 9, 9))
    w[1, 4], w[1, :, 4] = 0, 0  # a neuron that nobody sees
    w = (w + np.swapaxes(w, 1, 2)) / 9
    y, v = rng.normal(size=(2, 3, 9))
    lam, p = -0.7, 4.0

    def loss(w, y, v):
        return (v * ib.implicit_bias(y, lam, p, ib.Dense(w))).sum()

    cast = [jnp.asarray(x, dtype) for x in (w, y, v)]
    mapped = jax.jit(jax.vmap(jax.grad(loss)))(*cast)
    alone = jax.jit(jax.grad(loss))(cast[0][1], *(x[1] for x in cast[1:]))
    np.testing.assert_allclose(alone, mapped[1], atol=1e-5)
    for k in range(3):
        z = y[k]
        for _ in range(50):
            t = z[None, :] - z[:, None]
            tanh = np.tanh(p * t)
            slope = p * w[k] * (1 - tanh**2)
            hessian = np.eye(9) + lam * (slope - np.diag(slope.sum(1)))
            r = y[k] - lam * (w[k] * tanh).sum(1) - z
            z = z + 0.5 * np.linalg.solve(hessian, r)
        by_w = -lam * np.linalg.solve(hessian, v[k])[:, None] * tanh
        np.testing.assert_allclose(mapped[k], by_w, atol=1e-3 * abs(by_w).max())


@pytest.mark.parametrize("broken", ["asymmetric", "negative"])
def test_a_w_that_cannot_be_refused_gives_nan(broken):
    """As after a gradient step on w itself; a difference of one entry passes."""
    w = np.full((6, 6), 1 / 6, np.float32)
    y = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)), jnp.float32)

    @jax.jit
    def f(w):
        return ib.solve(y, -1.0, 3.0, ib.Dense(w))

    @jax.jit
    @jax.grad
    def gradient(w):
        return (ib.implicit_bias(y, -1.0, 3.0, ib.Dense(w)) ** 2).sum()

    def changed(by):
        new = w.copy()
        new[0, 1] += by
        new[1, 0] += by if broken == "negative" else 0
        return jnp.asarray(new)

    apart = -0.5 if broken == "negative" else 0.1
    assert (f(changed(apart)).result == ib.Result.NONFINITE).all()
    assert jnp.isnan(gradient(changed(apart))).all()
    assert (f(changed(1e-4)).result == ib.Result.CONVERGED).all()
    assert jnp.isfinite(gradient(changed(1e-4))).all()
    # Likewise where an update of the pytree made it.
    updated = jax.tree.map(lambda _: changed(apart), ib.Dense(w))
    solution = ib.solve(y, -1.0, 3.0, updated)
    assert (solution.result == ib.Result.NONFINITE).all()
