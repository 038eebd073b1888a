"""What counts as converged: the range of y decides, not its offset or |lam| alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ibnn_jax as ib

UNIFORM = ib.Uniform((-1,))
SOLVERS = [
    ib.Newton(),
    ib.MeanField(),
    ib.Picard(),
    ib.Anderson(),
    ib.Broyden(),
    ib.GradientDescent(),
]
solvers = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)


@pytest.mark.parametrize("p", [0.0, -2.0, np.nan])
@pytest.mark.parametrize("solver", [ib.Newton(), ib.MeanField()], ids=str)
def test_a_traced_p_that_is_not_positive_is_invalid(solver, p):
    y = jnp.linspace(-1, 1, 12).reshape(2, 6)

    @jax.jit
    def both(p):
        def loss(y, lam, p):
            z = ib.implicit_bias(y, lam, p, UNIFORM, solver=solver)
            return z.sum(), z

        gradients, z = jax.grad(loss, (0, 1, 2), has_aux=True)(y, -0.5, p)
        return ib.solve(y, -0.5, p, UNIFORM, solver=solver), z, gradients

    solution, z, gradients = both(jnp.array([[2.0], [p]]))
    assert list(solution.result) == [ib.Result.CONVERGED, ib.Result.NONFINITE]
    assert np.isnan(z[1]).all() and np.isnan(solution.value[1]).all()
    assert np.isfinite(z[0]).all() and np.isfinite(gradients[0][0]).all()
    assert np.isnan(gradients[0][1]).all() and np.isnan(gradients[1])
    assert np.isnan(gradients[2][1, 0]) and np.isfinite(gradients[2][0, 0])


@solvers
def test_an_offset_that_all_neurons_share_changes_nothing_that_the_dtype_holds(solver):
    rng = np.random.default_rng(0)
    offset = np.array([0.0, -30.0, 1e3, 1e6])[:, None]
    y = jnp.asarray(rng.normal(size=150) + offset, jnp.float32)
    v = jnp.asarray(rng.normal(size=150), jnp.float32)
    lam, p = -1.55, 8.65

    def loss(y, lam, solver):
        solution = ib.implicit_bias(
            y, lam, p, UNIFORM, solver=solver, return_solution=True, max_steps=2000
        )
        return (v.astype(y.dtype) * solution.value).sum(), solution

    grad = jax.jit(jax.grad(loss, (0, 1), has_aux=True), static_argnums=2)
    lams = jnp.full((4, 1), lam, jnp.float32)
    (by_y, by_lam), found = grad(y, lams, solver)
    # Exactly the same numbers around 0, in float64.
    around_0 = jnp.asarray(np.asarray(y, np.float64) - offset)
    (exact_y, exact_lam), exact = grad(around_0, lams.astype(float), ib.Newton())
    np.testing.assert_allclose(by_y, exact_y, atol=0.01 * abs(exact_y).max())
    cancelled = 0.02 * 0.1 * float(abs(exact_y).sum(-1).max())
    np.testing.assert_allclose(by_lam, exact_lam, rtol=0.03, atol=cancelled)
    close = np.asarray(found.value - offset - exact.value)
    assert (abs(close).max(-1) < 3e-4 + 2e-7 * offset[:, 0]).all()
    assert (found.result[:3] == ib.Result.CONVERGED).all()
    assert found.result[3] == ib.Result.MAX_STEPS  # its neurons are 0.06 apart


@solvers
def test_a_huge_lam_is_not_solved_by_a_huge_tolerance(solver):
    y = jnp.asarray(np.random.default_rng(0).normal(size=(1, 60)), jnp.float32)
    found = ib.solve(y, -1e30, 3.0, UNIFORM, solver=solver)
    solved = abs(found.value - y.mean()).max() < 1e-4  # all neurons are pulled together
    assert found.result[0] == ib.Result.MAX_STEPS or solved
    assert found.stats.steps[0] <= 100


def test_a_tiny_w_with_a_huge_lam_is_the_product_of_both():
    rng = np.random.default_rng(0)
    w = rng.random((40, 40))
    w, y, v = (w + w.T) / 40, *rng.normal(size=(2, 3, 40))

    def gradients(scale, dtype):
        def loss(y, lam, p, w):
            return (v * ib.implicit_bias(y, lam, p, ib.Dense.unchecked(w))).sum()

        inputs = [jnp.asarray(x, dtype) for x in (y, -2 / scale, 5.0, w * scale)]
        return jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*inputs)

    tiny, exact = gradients(1e-8, jnp.float32), gradients(1.0, jnp.float64)
    for found, true, factor in zip(tiny, exact, (1, 1e8, 1, 1e-8)):
        true = np.asarray(true)
        error = abs(np.asarray(found, float) * factor - true).max()
        assert error < 1e-3 * abs(true).max()


def test_newton_stops_where_rounding_forbids_the_tolerance_and_says_so():
    y = jnp.asarray(4 * np.random.default_rng(0).normal(size=(6, 64)), jnp.float32)
    codes = {ib.Result.CONVERGED, ib.Result.MAX_STEPS}
    for p in (30.0, 3e4):
        lam = jnp.array([-200.0, -60.0, -20.0, -5.0, -0.5, 0.9 / p])[:, None]
        found = ib.solve(y, lam, p, UNIFORM, solver=ib.Newton(), tol=1e-9)
        assert (found.stats.steps < 60).all()
        assert set(np.asarray(found.result)) <= codes
    assert (found.result == ib.Result.MAX_STEPS).any()


def test_slow_solvers_that_make_progress_are_not_stopped():
    y = jnp.asarray(4 * np.random.default_rng(0).normal(size=(2, 36)))
    for solver in (ib.Picard(), ib.GradientDescent()):
        found = ib.solve(y, -5.0, 30.0, UNIFORM, solver=solver, max_steps=5000)
        assert found.stats.converged.all() and (found.stats.steps > 100).any()


def test_nearly_equal_neurons_are_solved_to_a_share_of_their_range():
    rng = np.random.default_rng(0)
    y = jnp.asarray(1e-5 * rng.normal(size=(2, 50)) + 1, jnp.float32)
    lam = jnp.array([[-5.0], [0.09]])
    for solver in (ib.Newton(), ib.Picard()):
        found = ib.solve(y, lam, 10.0, UNIFORM, solver=solver)
        exact = ib.solve(y.astype(float), lam, 10.0, UNIFORM, solver=ib.Newton()).value
        size = np.ptp(np.asarray(exact), axis=-1)
        error = abs(np.asarray(found.value, float) - exact).max(-1)
        assert (error < 0.02 * size + 2e-7).all()
