"""Grids: their kernels, which one serves, and solutions of wide groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ibnn_jax as ib
from ibnn_jax.ibnn.mean_field import ladder, linearised, sizes, spline
from ibnn_jax.ibnn.mean_field.grid import Grid

COUPLING = ib.Uniform((-1,))
N = 160
SOLVER = ib.MeanField()


def draws(rng, n=N):
    """Groups of deviation about 1: what activations do, and what they might."""
    y = rng.normal(size=n)
    side = np.where(rng.random(n) < 0.5, -1.0, 1.0)
    return np.stack(
        [
            y,
            np.maximum(y, 0),
            np.where(rng.random(n) < 2 / 3, -0.3, y),
            side + 1e-3 * y,
            np.where(np.arange(n) == 0, 20, 0.3 * y),
            np.round(2 * y) / 2,
            np.full(n, 1.3),
            y + 20,
        ]
    )


@pytest.fixture
def x():
    return jnp.asarray(9 * np.random.default_rng(0).normal(size=(2, N)))


@pytest.mark.parametrize("grid", [Grid(128, 0.5), Grid(256, 0.3)], ids=str)
def test_sums_through_a_grid_are_the_sums_over_pairs(grid, x):
    """On a dense grid, and on one of blocks."""
    x = jnp.clip(x, -grid.reach, grid.reach)
    v = jnp.asarray(np.random.default_rng(1).normal(size=x.shape))
    apart = x[:, None, :] - x[:, :, None]
    slope = 1 - jnp.tanh(apart) ** 2
    place = grid.place(x)
    charges = place.charges(v)
    of_grid = (grid.bias(charges), grid.slope(charges), grid.moment(charges))
    kernels = (jnp.tanh(apart), slope, apart * slope)
    for coefficients, kernel in zip(of_grid, kernels):
        (found,) = place.read(coefficients)
        exact = (kernel * v[:, None, :]).mean(-1)
        assert float(jnp.abs(found - exact).max()) < 6 * grid.error


def test_finer_grids_err_less():
    errors = [spline.error(spacing) for spacing in (0.5, 0.375, 0.3, 0.25)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 5e-5


def test_biases_sum_to_nothing_and_all_alike_change_nothing(x):
    grid, q = Grid(256, 0.3), jnp.array([[-3.0], [0.5]])
    bias, slope = linearised.look(grid, x, q)
    assert float(jnp.abs(bias.sum(-1)).max()) < 1e-12
    found = linearised.respond(grid, x, q, slope, jnp.ones_like(x), tol=1e-3, most=20)
    assert found.done.all() and float(jnp.abs(found.u - 1).max()) < 1e-12


def test_the_grid_that_serves_holds_the_neurons_and_the_tolerance():
    grids = sizes.grids_for(784)
    assert grids == sizes.CPU.grids and sizes.grids_for(64) == ()
    extent, q = jnp.array([[5.0], [60.0], [1e5]]), jnp.full((3, 1), -0.5)
    tol, gentle = jnp.full((3, 1), 0.02), jnp.ones((3, 1))
    index = ladder.choose(extent, q, gentle, tol, grids)
    assert index[0] == 0 and index[2] == len(grids)
    cheaper, serves = grids[int(index[1]) - 1], grids[int(index[1])]
    assert cheaper.reach < extent[1] <= serves.reach
    for slope, wanted in ((gentle, 1e-9 * tol), (100 * gentle, tol)):
        index = ladder.choose(extent, q, slope, wanted, grids)
        assert (index == len(grids)).all()


def test_groups_that_a_round_leaves_undone_are_gathered_and_asked_again():
    group = jnp.arange(300)
    mask, slow = group % 2 == 0, group % 7 == 0

    def asked(grid, left, times, y, slow):
        return times + 1, ~slow | (left == 0)

    y, index = jnp.zeros((300, ladder.LEAST)), jnp.zeros(300, jnp.int32)
    times = jnp.zeros(300, jnp.int32)
    times = ladder.run_in_rounds(mask, index, sizes.CPU.grids, asked, times, y, slow)
    assert (times == jnp.where(mask, jnp.where(slow, 2, 1), 0)).all()


def test_no_group_goes_to_a_grid_that_errs_more_or_holds_less_than_its_own():
    grids = sizes.CPU.grids
    index = jnp.arange(300, dtype=jnp.int32) % len(grids)
    mask = jnp.arange(300) % 5 != 0

    def on_grid(grid, x, _):
        return jnp.stack([0 * x[:, 0] + grid.error, 0 * x[:, 0] + grid.reach], -1)

    blank, y = jnp.zeros((300, 2)), jnp.zeros((300, ladder.LEAST))
    found = ladder.run_on_grids(mask, index, grids, on_grid, blank, y)
    error, reach = jnp.asarray([(grid.error, grid.reach) for grid in grids])[index].T
    assert (found[:, 0] <= error).all() and not found[~mask].any()
    assert (found[:, 1] >= jnp.where(mask, reach, 0)).all()


def wide():
    """y [kind, width, lam, n], lam and p alike with size 1 on n, p = 10."""
    kinds = draws(np.random.default_rng(0))[:, None, None]
    y = kinds * np.array([1.0, 3.0, 10.0])[:, None, None]
    lam = np.array([-20.0, -2.0, -0.5, 0.0, 0.05, 0.095])[:, None]
    shape = (*np.broadcast_shapes(y.shape[:-1], lam.shape[:-1]), 1)
    y = np.broadcast_to(y, (*shape[:-1], N))
    return y, np.broadcast_to(lam, shape), np.full(shape, 10.0)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_wide_groups_and_their_gradients(dtype):
    y, lam, p = (jnp.asarray(a, dtype) for a in wide())
    v = jnp.asarray(1 + np.random.default_rng(2).normal(size=N))

    @jax.jit
    def call(y, lam, p):
        def solve(solver):
            def loss(y, lam, p):
                z, stats = ib.implicit_bias(
                    y, lam, p, COUPLING, solver=solver, has_stats=True
                )
                return (v * z).sum(), (z, stats)

            return loss

        return jax.grad(solve(SOLVER), (0, 1, 2), has_aux=True)(y, lam, p)

    @jax.jit
    def exactly(y, lam, p):
        z, back = jax.vjp(
            lambda *a: ib.implicit_bias(*a, COUPLING, solver=ib.Newton()), y, lam, p
        )
        return z, back(jnp.broadcast_to(v, z.shape))

    gradients, (z, stats) = call(y, lam, p)
    y, lam, p = (a.astype(float) for a in (y, lam, p))
    exact, expected = exactly(y, lam, p)
    assert stats.converged.all()
    residual = jnp.abs(ib.inverse(z.astype(float), lam, p, COUPLING) - y).max(-1)
    rounding = 0.0 if dtype == jnp.float64 else 1e-6 * (1 + abs(lam * p))[..., 0]
    size = jnp.abs(y).max(-1)
    assert (residual <= 1e-4 * (1 + size + abs(lam[..., 0]))).all()
    assert (residual <= 1.2 * stats.residual + rounding * size + 1e-9).all()
    off = jnp.linalg.norm(gradients[0] - expected[0], axis=-1)
    assert (off <= 1e-2 * jnp.linalg.norm(expected[0], axis=-1)).all()

    u, apart = expected[0], exact[..., None, :] - exact[..., :, None]
    bias = jnp.tanh(10 * apart).mean(-1)
    by_p = (apart * (1 - jnp.tanh(10 * apart) ** 2)).mean(-1)
    terms = jnp.abs(u * bias).sum(-1), jnp.abs(lam * u * by_p).sum(-1)
    for found, right, total in zip(gradients[1:], expected[1:], terms):
        allowed = jnp.maximum(0.03 * jnp.abs(right[..., 0]), 0.02 * total)
        assert (jnp.abs(found - right)[..., 0] <= allowed + 1e-5).all()


def test_a_group_is_solved_alike_beside_wider_ones():
    rng = np.random.default_rng(3)
    y = jnp.asarray(rng.normal(size=(4, N)) * np.array([[0.01], [2], [0.2], [10]]))
    together = ib.solve(y, -0.5, 10.0, COUPLING, solver=SOLVER)
    assert together.stats.converged.all()
    for k in range(4):
        alone = ib.solve(y[k : k + 1], -0.5, 10.0, COUPLING, solver=SOLVER)
        assert float(jnp.abs(together.value[k] - alone.value[0]).max()) < 2e-4


def test_no_grid_where_it_is_not_known_what_to_put_on_it():
    """Cells that were asked for, and another sigma."""
    gauss = ib.Uniform((-1,), sigma=ib.Sigma(lambda t: jax.lax.erf(t), lambda t: t * t))
    y = jnp.asarray(np.random.default_rng(0).normal(size=(2, N)))
    for solver, coupling in (
        (ib.MeanField(cells=(19, 63)), COUPLING),
        (SOLVER, gauss),
    ):
        solution = ib.solve(y, -0.5, 10.0, coupling, solver=solver)
        assert solution.stats.converged.all()


def test_neurons_far_beyond_every_grid_are_solved_pairwise():
    """A few outliers set the range, so that the cells resolve none of the others."""
    y = 10 * np.random.default_rng(0).normal(size=(16, 784)) ** 3
    stats = ib.solve(jnp.asarray(y, jnp.float32), -20.0, 10.0, COUPLING).stats
    assert stats.converged.all()
