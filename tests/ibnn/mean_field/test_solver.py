"""The mean-field solver and solver="auto" against the exact pairwise equation, in
float64 and float32.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ibnn_jax as ib
from ibnn_jax.core import SolveSettings, batching
from ibnn_jax.ibnn.layout import bind
from ibnn_jax.ibnn.mean_field import solver as mean_field

N = 196
P = np.array([1.0, 3.0, 10.0, 30.0])
LAM = np.array([-20.0, -5.0, -2.0, -0.5, -0.05, 0.0])


def inputs(n=N):
    """normal, wide, with ties, constant, and like a picture: a large constant
    background.
    """
    rng = np.random.default_rng(0)
    y = rng.normal(size=n)
    return np.stack(
        [
            y,
            4 * y,
            np.where(rng.random(n) < 2 / 3, -0.3, y),
            np.full(n, 1.3),
            np.where(rng.random(n) < 0.5, 0, 8 * y),
        ]
    )


def grid():
    """y [kind, lam, p, n] with lam, p [1, lam, p, 1]: lam up to 0.9 of the bound."""
    lam = np.concatenate(
        [np.broadcast_to(LAM[:, None], (len(LAM), len(P))), (0.9 / P)[None]]
    )[None, :, :, None]
    y = inputs()[:, None, None, :]
    return np.broadcast_to(y, (len(y), *lam.shape[1:3], N)), lam, P[None, None, :, None]


def true_residual(z, y, lam, p):
    slopes = jnp.broadcast_to(p, (*z.shape[:-1], 1)).reshape(-1, 1, 1)
    bias = jax.lax.map(
        lambda a: jnp.tanh(a[1] * (a[0][None, :] - a[0][:, None])).mean(-1),
        (z.reshape(-1, z.shape[-1]), slopes),
    )
    return y - lam * bias.reshape(z.shape) - z


@pytest.fixture(scope="module")
def exact():
    y, lam, p = grid()
    return jax.jit(
        lambda y: ib.solve(y, lam, p, ib.Uniform((-1,)), solver=ib.Newton())
    )(jnp.asarray(y))


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_the_default_converges_everywhere_below_the_bound(exact, dtype):
    y, lam, p = grid()
    found = jax.jit(lambda y: ib.solve(y, lam, p, ib.Uniform((-1,))))(
        jnp.asarray(y, dtype)
    )
    assert exact.stats.converged.all() and exact.stats.steps.max() <= 10
    assert found.stats.converged.all() and (found.result == ib.Result.CONVERGED).all()
    assert found.value.dtype == dtype
    z = found.value.astype(jnp.float64)
    residual = jnp.abs(true_residual(z, y, lam, p)).max(-1)
    tolerance = 1e-4 * (1 + abs(y).max(-1) + abs(lam[..., 0]))
    assert (np.asarray(residual) <= 1.5 * tolerance + 1e-5).all()
    amplified = (
        np.where(lam[..., 0] > 0, 10, 1) * tolerance
    )  # the Hessian's smallest eigenvalue is 0.1 at 0.9 of the bound
    assert (
        np.asarray(jnp.abs(z - exact.value).max(-1)) <= 1.5 * amplified + 1e-5
    ).all()


@pytest.mark.parametrize("cells, tol", [((64,), 1e-5), ((4,), 1e-4)])
def test_in_float32_the_residual_told_is_the_true_one(cells, tol):
    """At |lam| p of hundreds rounding alone nears such a tolerance, and the pairwise
    finish must not lose what it found.
    """
    y, lam, p = grid()
    solver = ib.MeanField(cells=cells)
    found = jax.jit(
        lambda y: ib.solve(y, lam, p, ib.Uniform((-1,)), solver=solver, tol=tol)
    )(jnp.asarray(y, jnp.float32))
    residual = np.asarray(
        jnp.abs(true_residual(found.value.astype(jnp.float64), y, lam, p)).max(-1)
    )
    rounding = 1e-6 * (1 + abs(lam * p)[..., 0]) * abs(y).max(-1)
    assert (residual <= 2 * np.asarray(found.stats.residual) + rounding).all()


def test_the_knob_takes_it_to_1e_minus_5(exact):
    y, lam, p = grid()
    solver = ib.MeanField(cells=(64, 256))
    found = jax.jit(
        lambda y: ib.solve(y, lam, p, ib.Uniform((-1,)), solver=solver, tol=2e-7)
    )(jnp.asarray(y))
    assert found.stats.converged.all()
    assert float(jnp.abs(found.value - exact.value).max()) < 1e-5


def test_error_falls_with_the_fourth_power_of_the_cells():
    y = jnp.asarray(np.random.default_rng(0).normal(size=(4, 500)))
    exact = ib.solve(y, -0.5, 10.0, ib.Uniform((-1,)), solver=ib.Newton()).value
    errors = []
    for cells in (16, 32, 64):
        solver = ib.MeanField(cells=(cells,), pairwise_max_size=0)  # the points alone
        found = ib.solve(y, -0.5, 10.0, ib.Uniform((-1,)), solver=solver, tol=1e-9)
        errors.append(float(jnp.abs(found.value - exact).max()))
        assert (
            found.stats.residual > 1e-9
        ).all()  # and it says what it could not reach
    assert errors[1] < errors[0] / 8 and errors[2] < errors[1] / 8 and errors[2] < 2e-5


def test_attempts_with_as_many_points_as_neurons_are_left_out():
    """They would cost what the pairwise finish costs, and another loop to compile."""
    solver = ib.MeanField(cells=(4, 7))  # 10 points, 16 points
    tried = []
    for n in (16, 17):
        groups, _ = bind(jnp.zeros((1, n)), -0.5, 10.0, ib.Uniform((-1,)))
        settings = SolveSettings(solver, 1e-4, 10)
        _, kept = jax.eval_shape(partial(solver.solve, settings=settings), groups)
        tried.append(1 + len(kept.later))
    assert tried == [1, 2]


@pytest.mark.parametrize("n", [64, 128])
def test_few_neurons_need_few_cells(n):
    """Narrow groups are solved on the points alone, to the tolerance."""
    y = jnp.asarray(0.1 * np.random.default_rng(0).normal(size=(8, n)))
    solver = ib.MeanField(pairwise_max_size=0)
    found = ib.solve(y, -2.0, 10.0, ib.Uniform((-1,)), solver=solver)
    assert found.stats.converged.all()
    residual = jnp.abs(true_residual(found.value, y, -2.0, 10.0)).max(-1)
    assert (residual <= 1e-4 * (3 + jnp.abs(y).max(-1))).all()


def test_the_residual_near_the_bound_where_most_neurons_lie_in_a_clump():
    """As pictures with a background: there the neurons of a cell err together."""
    rng = np.random.default_rng(0)
    clump = rng.uniform(-0.3, 0.3, (40, 1)) + 0.005 * rng.normal(size=(40, 784))
    spread = rng.uniform(-0.5, 0.5, (40, 784))
    y = np.where(rng.random((40, 784)) < [[0.75], [0.9]] * 20, clump, spread)
    y = jnp.asarray(y * np.repeat([0.3, 0.6, 1.0, 1.5], 10)[:, None], jnp.float32)
    found = jax.jit(lambda y: ib.solve(y, 0.095, 10.0, ib.Uniform((-1,))))(y)
    z, y = (np.asarray(a, float) for a in (found.value, y))
    residual = np.abs(true_residual(z, y, 0.095, 10.0)).max(-1)
    assert found.stats.converged.all()
    assert (residual <= 1e-4 * (1 + np.abs(y).max(-1) + 0.095)).all()
    assert (residual <= 1.6 * np.asarray(found.stats.residual) + 1e-7).all()


def test_the_residual_in_a_wide_cell_around_a_crowd():
    """There interpolation errs to both sides, and not at all in the middle."""
    y = 0.01 * np.random.default_rng(2).standard_cauchy(size=(6, 600))
    y[:, :4] = -68, 1.6, -2, 1
    y = np.clip(y, -68, 7)
    solution = ib.solve(jnp.asarray(y), -2.0, 1.0, ib.Uniform((-1,)))
    worst = np.abs(true_residual(solution.value, y, -2.0, 1.0)).max(-1)
    assert (worst <= 1.1 * solution.stats.residual).all()


def test_a_large_group_that_misses_the_tolerance_is_reported():
    y = jnp.asarray(8 * np.random.default_rng(0).normal(size=(1, 400)))
    found = ib.solve(
        y,
        -0.5,
        30.0,
        ib.Uniform((-1,)),
        solver=ib.MeanField(cells=(16,), pairwise_max_size=100),
    )
    assert found.result[0] == ib.Result.MAX_STEPS and not found.stats.converged[0]
    finished = ib.solve(
        y, -0.5, 30.0, ib.Uniform((-1,)), solver=ib.MeanField(cells=(16,))
    )
    assert finished.stats.converged[0]


def test_gradients_match_the_exact_adjoint():
    rng = np.random.default_rng(1)
    y, v = jnp.asarray(rng.normal(size=(2, 6, N)))
    lam = jnp.array([-2.0, -0.5, -0.05, -0.01, 0.05, 0.08])[:, None]

    def gradients(solver):
        def loss(y, lam, p):
            return (
                v * ib.implicit_bias(y, lam, p, ib.Uniform((-1,)), solver=solver)
            ).sum()

        return jax.jit(jax.grad(loss, (0, 1, 2)))(y, lam, jnp.full((6, 1), 10.0))

    pairs = list(zip(gradients(ib.MeanField()), gradients(ib.Newton())))
    for found, exact in pairs:
        assert float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)) < 6e-3
    for found, exact in pairs[
        :2
    ]:  # within each group too; there the sum for p may all but cancel
        assert (
            float(
                (jnp.abs(found - exact) / jnp.abs(exact).max(-1, keepdims=True)).max()
            )
            < 1e-2
        )


def nearly_equal(n=N):
    """float32 groups of a few levels each, from far closer than any tolerance to wide,
    around 0 and far from it.
    """
    rng = np.random.default_rng(0)
    kinds = [
        (r, levels, offset)
        for r in (1e-5, 1e-4, 1e-3, 1e-2, 1, 4)
        for levels in (2, 3, 8, 40)
        for offset in (0, -1, 30)
    ]
    return np.stack(
        [
            (r * rng.random(levels))[rng.integers(0, levels, n)] + offset
            for r, levels, offset in kinds
        ]
    ).astype(np.float32)


@pytest.mark.parametrize("lam", [-5.0, -0.5, 0.095])
def test_nearly_equal_neurons_of_few_levels(lam):
    """Most points stand for no neuron, or for one by rounding alone, and at the bound
    the slope of T is 20.
    """
    y, v = nearly_equal(), np.random.default_rng(1).normal(size=N)

    def f(y, solver):
        return ib.implicit_bias(
            y, lam, 10.0, ib.Uniform((-1,)), solver=solver, has_stats=True
        )

    @jax.jit
    def both(y):
        found, stats = f(y, ib.MeanField())
        gradients = [
            jax.grad(lambda y, s=s: (v * f(y, s)[0]).sum())(x)
            for s, x in ((ib.MeanField(), y), (ib.Newton(), y.astype(float)))
        ]
        return found, stats, *gradients

    z, stats, gradient, exact = both(jnp.asarray(y))
    assert stats.converged.all() and stats.steps.max() <= 8
    tolerance = 1e-4 * (1 + abs(y).max(-1) + abs(lam))
    assert (
        jnp.abs(true_residual(z.astype(float), y.astype(float), lam, 10.0)).max(-1)
        <= 1.1 * tolerance
    ).all()
    assert (jnp.abs(gradient - exact).max(-1) <= 0.05 * jnp.abs(exact).max(-1)).all()


@pytest.mark.parametrize("n", [5, N])
def test_gradients_of_groups_far_wider_than_the_kernel(n):
    """Beside such y a small lam is within any tolerance; derivatives still are of the
    size of lam p.
    """
    rng = np.random.default_rng(3)
    spread = np.geomspace(20, 1000, 6)[:, None]
    outlier = np.where(np.arange(n) == 0, spread, rng.normal(size=(6, n)))
    y = jnp.asarray(
        np.stack(
            [
                spread * rng.normal(size=(6, n)),
                spread * np.linspace(-1, 1, n) + 7,
                outlier,
            ]
        )
    ).reshape(-1, 1, n)
    lam, v = (
        jnp.array([-0.3, -0.02, -0.002, 0.002, 0.02])[:, None],
        jnp.asarray(rng.normal(size=n)),
    )
    y = jnp.broadcast_to(y, (len(y), 5, n))

    @jax.jit
    def gradients(y):
        def f(y, solver):
            return ib.implicit_bias(y, lam, 20.0, ib.Uniform((-1,)), solver=solver)

        return [
            jax.grad(lambda y, s=s: (v * f(y, s)).sum())(y)
            for s in (ib.MeanField(), ib.Newton())
        ]

    found, exact = gradients(y)
    assert (jnp.abs(found - exact).max(-1) <= 0.1 * jnp.abs(exact).max(-1)).all()
    z = ib.solve(y, lam, 20.0, ib.Uniform((-1,)), solver=ib.MeanField()).value
    assert float(jnp.abs(true_residual(z, y, lam, 20.0)).max()) <= 1.5 * 200 * 1e-4 / 20


def test_points_that_make_no_progress_are_given_up_early():
    """Newton on a point without weight may go in circles, and in float32 rounding may
    hold up all of them.
    """
    rng = np.random.default_rng(0)
    y = jnp.asarray(
        50
        * rng.normal(size=(16, 5))[np.arange(16)[:, None], rng.integers(0, 5, (16, N))],
        jnp.float32,
    )
    solver = ib.MeanField(cells=(19, 63))
    found = ib.solve(y, -14.0, 40.0, ib.Uniform((-1,)), solver=solver)
    assert found.stats.converged.all() and 20 < found.stats.steps.max() < 80


def test_past_the_bound_it_is_the_solution_that_descent_reaches():
    rng = np.random.default_rng(2)
    y = jnp.asarray(
        np.stack(
            [rng.normal(size=N), np.where(rng.random(N) < 0.6, 0.2, rng.normal(size=N))]
        )
    )[:, None]
    lam = jnp.array([0.2, 1.0, 10.0])[None, :, None]
    y = jnp.broadcast_to(y, (2, 3, N))
    found = ib.solve(
        y, lam, 10.0, ib.Uniform((-1,)), tol=1e-6
    )  # next to a bifurcation z moves 30 times the residual
    z = y
    for _ in range(400):  # the convex-concave procedure
        z = y - lam * jnp.tanh(10 * (z[..., None, :] - z[..., :, None])).mean(-1)
    assert (found.result == ib.Result.CONVERGED_NOT_UNIQUE).all()
    assert float(jnp.abs(found.value - z).max()) < 2e-3
    before, after = (
        ib.energy(x, y, lam, 10.0, ib.Uniform((-1,))) for x in (y, found.value)
    )
    assert (after <= before).all()


def test_blocks_of_groups_are_the_whole(monkeypatch):
    rng = np.random.default_rng(0)
    y, v = (jnp.asarray(a) for a in rng.normal(size=(2, 7, N)))
    lam = jnp.array([-2.0, -0.5, -0.05, 0.05, 0.08, 0.095, -1.0])[:, None]
    w = rng.random((N, N))
    dense = ib.Dense((w + w.T) / N)

    def all_of_it(coupling, solver, lam):
        def f(*a):
            return ib.implicit_bias(*a, 10.0, coupling, solver=solver, has_stats=True)

        def all_of(y, lam, v):
            z, back, stats = jax.vjp(f, y, lam, has_aux=True)
            return z, back(v), stats

        return jax.jit(all_of)(y, lam, v)

    uniform = ib.Uniform((-1,))
    cases = (
        (uniform, ib.MeanField(cells=(19, 63)), lam),
        (uniform, ib.Newton(), lam),
        (dense, ib.Newton(), lam / 2),
    )  # within its bound
    for case, most in zip(cases, (2, 3, 0.5)):  # groups in a block; at least one
        whole = all_of_it(*case)
        jax.clear_caches()  # or what was compiled for the whole would be called again
        with monkeypatch.context() as small:
            small.setattr(mean_field, "NEURONS", int(most * N))
            small.setattr(batching.in_blocks, "__defaults__", (int(most * N * N),))
            chex.assert_trees_all_close(all_of_it(*case), whole, atol=1e-9)
        jax.clear_caches()
    cut = [batching._equal_blocks(*case) for case in ((6, 2), (7, 2), (6, 1))]
    assert cut == [(3, 2), (4, 2), (6, 1)]


def test_nan_stays_in_its_group():
    y = np.random.default_rng(0).normal(size=(4, N))
    clean = ib.solve(jnp.asarray(y), -0.5, 10.0, ib.Uniform((-1,)))
    y[1, 5], y[2, 0] = np.nan, np.inf
    found = ib.solve(jnp.asarray(y), -0.5, 10.0, ib.Uniform((-1,)))
    assert list(np.asarray(found.result)) == [0, 3, 3, 0]
    assert np.isnan(found.value[1:3]).all() and not found.stats.converged[1:3].any()
    np.testing.assert_allclose(found.value[::3], clean.value[::3], atol=1e-12)


def test_seeds_lam_and_p_vmapped_are_the_loops():
    y = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 14, 14)))
    lam, p = jnp.array([-1.0, -0.1, 0.05]), jnp.array([3.0, 10.0, 10.0])

    def f(y, lam, p):
        return ib.implicit_bias(y, lam, p, ib.Uniform((-2, -1)))

    together = jax.jit(jax.vmap(f))(y, lam, p)
    for i in range(3):
        np.testing.assert_allclose(together[i], f(y[i], lam[i], p[i]), atol=2e-5)


def test_strict_mode_says_which_groups_hold_nan():
    y = jnp.asarray(np.random.default_rng(0).normal(size=(3, 20))).at[1, 2].set(jnp.nan)
    with pytest.raises(FloatingPointError, match=r"of 3 groups 1 hold NaN.* in y") as e:
        ib.solve(y, -0.5, 10.0, ib.Uniform((-1,)), strict=True)
    assert "max_steps" not in str(e.value)


def test_strict_mode_raises_outside_jit():
    y = jnp.asarray(np.random.default_rng(0).normal(size=(2, 20)))
    with pytest.raises(FloatingPointError, match="did not converge"):
        ib.solve(
            y,
            -5.0,
            10.0,
            ib.Uniform((-1,)),
            solver=ib.Picard(damping=0.01),
            max_steps=3,
            strict=True,
        )
