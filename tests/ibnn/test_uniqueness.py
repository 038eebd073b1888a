"""The uniqueness bound against a search for a singular Hessian of the energy."""

import jax
import numpy as np
import pytest

import ibnn_jax as ib

P = 10.0


def window(side, image=8):
    """The w of a window of this side on a square image."""
    place = np.arange(image)
    near = abs(place[:, None] - place) <= side // 2
    return np.kron(near, near) / side**2


def ring(n):
    """Each neuron of a ring sees itself and its two neighbours."""
    neighbour = np.roll(np.eye(n), 1, 0)
    return (np.eye(n) + neighbour + neighbour.T) / 3


def random_dense(seed, n=12):
    w = np.random.default_rng(seed).random((n, n))
    w = w + w.T
    return w / w.sum(1).max()


def singular(w):
    """The smallest lam > 0 found at which I + lam DB(z) is singular, over many z."""
    rng = np.random.default_rng(0)
    n, largest = len(w), 0.0
    for scale in (0, 0.003, 0.01, 0.03, 0.1, 1):
        for _ in range(1 if scale == 0 else 12):
            z = scale * rng.normal(size=n)
            k = w * P * (1 - np.tanh(P * (z[None] - z[:, None])) ** 2)
            largest = max(largest, np.linalg.eigvalsh(np.diag(k.sum(1)) - k).max())
    return 1 / largest


ALTERNATING = np.kron([[0, 1], [1, 0]], np.full((3, 3), 1 / 3))  # two rivals
TABLE = {  # w, the bound, whether equal rows attain it at z = 0
    "window 3x3": (window(3), 0.0780, False),
    "window 5x5": (window(5), 0.0858, False),
    "complete graph": ((1 - np.eye(4)) / 3, 0.075, True),
    "ring": (ring(8), 0.075, True),
    "two rivals": (ALTERNATING, 0.05, True),
    "uniform": (np.full((7, 7), 1 / 7), 0.1, True),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_bound_of_known_couplings(name):
    w, expected, attained = TABLE[name]
    bound = float(ib.uniqueness_bound(P, ib.Dense(w)))
    assert bound == pytest.approx(expected, abs=5e-5)
    found = singular(w)
    assert bound <= found * (1 + 1e-9)
    if attained:
        assert found == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize("side, expected", [(3, 0.075), (5, 0.08)])
def test_a_window_on_any_image(side, expected):
    bound = float(ib.uniqueness_bound(P, ib.Window((side, side))))
    assert bound == pytest.approx(expected, rel=1e-6)
    assert bound < singular(window(side))


@pytest.mark.parametrize("seed", range(6))
def test_random_weights_stay_below_what_a_search_finds(seed):
    w = random_dense(seed)
    bound = float(ib.uniqueness_bound(P, ib.Dense(w)))
    assert 1 / (2 * P) < bound < singular(w) < 2 * bound


def test_a_traced_w_keeps_the_bound_that_holds_for_any():
    w = random_dense(0)
    traced = jax.jit(lambda w: ib.uniqueness_bound(P, ib.Dense.unchecked(w)))(w)
    assert float(traced) == pytest.approx(1 / (2 * P))


def test_whole_numbers_and_lists():
    bounds = ib.uniqueness_bound([5, 10.0], ib.Uniform())
    np.testing.assert_allclose(bounds, [0.2, 0.1])
    assert float(ib.project_lam(1, 10, ib.Uniform())) == pytest.approx(0.095)
    projected = ib.project_lam(np.array([-3, 2]), 10.0, ib.Uniform())
    np.testing.assert_allclose(projected, [-3, 0.095])
    projected = ib.project_lam([-3.0, 2.0], 10.0, ib.Uniform(), "nonpositive")
    np.testing.assert_array_equal(projected, [-3, 0])
