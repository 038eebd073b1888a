"""Lipschitz bounds, the regulariser, and intervals: nothing sampled lies outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ibnn_jax
from ibnn_jax import nemon

SAMPLES = 10_000


def network(draws, gamma, n=12, inputs=7, outputs=3):
    A, _, eta = draws.system(n, gamma)
    B = draws.normal(size=(n, inputs)) / np.sqrt(inputs)
    C = draws.normal(size=(outputs, n)) / np.sqrt(n)
    return A, B, C, eta


@pytest.mark.parametrize("gamma", [-1.0, 0.9])
@pytest.mark.parametrize("activation", [jax.nn.relu, jnp.tanh])
def test_no_change_exceeds_the_bounds(draws, gamma, activation):
    A, B, C, eta = network(draws, gamma)
    paper, componentwise = nemon.lipschitz(A, B, C, eta, gamma)
    assert componentwise <= paper
    x = draws.normal(size=(SAMPLES, 7))
    # Near and far pairs, along the corners of the box, where l-inf changes most.
    step = draws.choice([-1.0, 1.0], size=x.shape) * draws.choice(
        [1e-3, 1.0], (SAMPLES, 1)
    )
    y, moved = (
        nemon.solve(A, (x + h) @ B.T, activation, eta).value @ C.T for h in (0, step)
    )
    ratio = jnp.abs(moved - y).max(1) / np.abs(step).max(1)
    assert 0 < ratio.max() <= componentwise * (1 + 1e-6)


def test_the_regulariser_is_at_least_the_bound(draws):
    for gamma in (-1.0, 0.0, 0.9):
        A, B, C, eta = network(draws, gamma)
        paper, _ = nemon.lipschitz(A, B, C, eta, gamma)
        assert nemon.regulariser(B, C, eta, gamma) >= paper
        gradient = jax.grad(nemon.regulariser)(B, C, eta, gamma)
        assert jnp.isfinite(gradient).all() and jnp.abs(gradient).max() > 0


def test_there_is_no_bound_where_mu_exceeds_gamma(draws):
    A, B, C, eta = network(draws, 0.5)
    assert np.isinf(nemon.lipschitz(A, B, C, eta, 0.4)).all()
    with pytest.raises(ValueError, match="B must be"):
        nemon.lipschitz(A, B.T, C, eta, 0.5)


@pytest.mark.parametrize("gamma", [-1.0, 0.9])
def test_intervals_hold_every_sample(draws, gamma):
    A, B, _, eta = network(draws, gamma)
    u_lo = draws.normal(size=(SAMPLES // 100, 12))
    u_hi = u_lo + 0.5 * draws.rng.uniform(size=u_lo.shape)
    lo, hi = nemon.interval(A, u_lo, u_hi, eta=eta)
    share = draws.choice([0.0, 1.0, 0.5], size=(100, *u_lo.shape))
    z = nemon.solve(A, u_lo + share * (u_hi - u_lo), eta=eta).value
    assert (lo - 1e-9 <= z).all() and (z <= hi + 1e-9).all()
    # A closed box has the solution itself, and a wider one holds the narrow one.
    point, same = nemon.interval(A, u_lo, u_lo, eta=eta)
    np.testing.assert_allclose(point, same, atol=1e-9)
    wide = nemon.interval(A, u_lo - 0.1, u_hi + 0.1, eta=eta)
    assert (wide[0] <= lo + 1e-9).all() and (hi <= wide[1] + 1e-9).all()


def test_intervals_that_were_not_solved_are_infinite(draws):
    A, u, eta = draws.system(6, 0.5)
    short = {"solver": ibnn_jax.Picard(), "max_steps": 1}
    lo, hi = nemon.interval(A, u, u + 1, eta=eta, **short)
    assert (lo == -np.inf).all() and (hi == np.inf).all()


def test_intervals_are_sharper_than_the_lipschitz_bound(draws):
    A, B, _, eta = network(draws, 0.5)
    x, radius = draws.normal(size=(20, 7)), 0.01
    centre, spread = x @ B.T, radius * np.abs(B).sum(1)
    lo, hi = nemon.interval(A, centre - spread, centre + spread, eta=eta)
    bound = nemon.lipschitz(A, B, np.eye(12), eta, 0.5)[1] * radius
    assert ((hi - lo) / 2).max() <= bound


def test_intervals_can_be_trained_on(draws):
    A, _, eta = draws.system(5, 0.5)
    u_lo = draws.normal(size=(2, 5))
    v = draws.normal(size=(2, 2, 5))

    def loss(A, u_lo):
        lo, hi = nemon.interval(A, u_lo, u_lo + 0.3, eta=eta)
        return (v[0] * lo + v[1] * hi).sum()

    gradient = jax.grad(loss, argnums=(0, 1))(A, u_lo)
    for k, (value, name) in enumerate(zip((A, u_lo), "Au")):
        direction = draws.normal(size=value.shape) * 1e-6
        ends = [[A, u_lo], [A, u_lo]]
        ends[0][k], ends[1][k] = value - direction, value + direction
        change = loss(*ends[1]) - loss(*ends[0])
        along = 2 * (gradient[k] * direction).sum()
        np.testing.assert_allclose(change, along, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("gamma", [1.0, 1.5])
def test_a_gamma_of_1_or_more_bounds_nothing(gamma):
    a, eye, eta = 1.2 * jnp.eye(3), jnp.eye(3), jnp.ones(3)
    assert np.isinf(nemon.lipschitz(a, eye, eye, eta, gamma)).all()
    with pytest.raises(ValueError, match="gamma must be below 1"):
        nemon.regulariser(eye, eye, eta, gamma)
    with pytest.raises(ValueError, match="gamma must be below 1"):
        nemon.most_steps(a, jnp.ones(3), gamma=gamma)
