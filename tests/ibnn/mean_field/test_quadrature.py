"""The quadrature and the interpolation that MeanField rests on, against sums over all
points.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import ibnn_jax as ib
from ibnn_jax.ibnn.mean_field.quadrature import Cells

CUBIC = np.polynomial.Polynomial([0.3, -1.0, 0.7, 0.4])
QUINTIC = np.polynomial.Polynomial([0.2, 0.5, -0.3, 0.1, 0.6, -0.4])


@pytest.fixture(
    params=[50, 500], ids="{} points".format
)  # few share one sum per cell, many take turns at four
def x(request):
    """Two groups, with ties and empty cells."""
    x = np.random.default_rng(0).normal(size=(2, request.param))
    x[:, ::3] = x[:, :1]
    return x / abs(x).max(-1, keepdims=True) * [[2.0], [0.5]]


@pytest.fixture
def cells(x):
    return Cells.spanning(jnp.asarray(abs(x).max(-1, keepdims=True)), 6)


def quartic_cost(x, rule):
    return (rule.weights * rule.points**4).sum(-1) - (x**4).mean(-1)


def quadrature(x, cells):
    place = cells.locate(jnp.asarray(x))
    return place.quadrature(place.moments(1 / x.shape[1]))


def test_the_quadrature_is_exact_for_cubics(x, cells):
    rule = quadrature(x, cells)
    assert (rule.weights >= 0).all()
    np.testing.assert_allclose(
        (rule.weights * CUBIC(rule.points)).sum(-1), CUBIC(x).mean(-1), rtol=1e-12
    )


def test_the_defect_is_what_a_quartic_costs(cells):
    """Of neurons that lie evenly in their cells."""
    x = (np.arange(6000) + 0.5 - 3000) / 3000 * np.array([[2.0], [0.5]])
    rule = quadrature(x, cells)
    np.testing.assert_allclose(quartic_cost(x, rule), rule.defect.sum(-1), rtol=1e-5)


def test_the_defect_is_at_least_three_fifths_of_what_a_quartic_costs(x, cells):
    rule = quadrature(x, cells)
    cost = quartic_cost(x, rule)
    assert (cost > 0).all()
    assert (rule.defect.sum(-1) > 0.6 * cost).all()
    assert (rule.defect.sum(-1) < 3 * cost).all()


def test_the_defect_is_three_fifths_of_that_where_the_bound_is_met(cells):
    """Neurons as far from the left end of their cell as others from the right: Cauchy
    and Schwarz with equality.
    """
    x = cells.nodes[:, 2:3] + cells.width * jnp.array([[0.2, 0.8] * 20])
    rule = quadrature(x, cells)
    np.testing.assert_allclose(
        rule.defect.sum(-1), 0.6 * quartic_cost(x, rule), rtol=1e-9
    )


def test_neurons_on_a_point_have_no_defect(cells):
    rule = quadrature(np.tile([[1.1], [0.2]], 40), cells)
    np.testing.assert_allclose(rule.defect, 0, atol=1e-15)


def test_weights_of_neurons_next_to_an_end_add_up():
    """In float32 the place and the weight of an inner point there are differences of
    numbers that are all but equal.
    """
    x = jnp.linspace(1e-5, 3e-3, 400, dtype=jnp.float32)[
        :, None
    ]  # how far from an end, in cells
    cells = Cells.spanning(jnp.full((400, 1), 2, jnp.float32), 4)
    for end in (x - 2, 2 - x):
        rule = quadrature(end, cells)
        assert (rule.weights >= 0).all()
        np.testing.assert_allclose(rule.weights.sum(-1), 1, rtol=1e-6)
        np.testing.assert_allclose(
            (rule.weights * rule.points).sum(-1), end[:, 0], rtol=1e-6
        )


def test_spreading_is_exact_for_cubics(x, cells):
    v = np.random.default_rng(1).normal(size=x.shape)
    place = cells.locate(jnp.asarray(x))
    charge, dipole = place.spread(place.moments(jnp.asarray(v)))
    total = (charge * CUBIC(cells.nodes) + dipole * CUBIC.deriv()(cells.nodes)).sum(-1)
    np.testing.assert_allclose(total, (v * CUBIC(x)).sum(-1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("slope", [False, True])
def test_interpolation_is_exact_for_quintics(x, cells, slope):
    data = (
        jnp.asarray(f(np.asarray(cells.nodes)))
        for f in (QUINTIC, QUINTIC.deriv(), QUINTIC.deriv(2))
    )
    found = cells.locate(jnp.asarray(x)).interpolate(*data, slope=slope)
    np.testing.assert_allclose(
        found, (QUINTIC.deriv() if slope else QUINTIC)(x), rtol=1e-10, atol=1e-12
    )


def test_moments_are_the_same_on_accelerators(x, cells):
    place = cells.locate(jnp.asarray(x))
    for scattered, compared in zip(
        place._scattered(0.5), place._compared(0.5), strict=True
    ):
        np.testing.assert_allclose(compared, scattered, rtol=1e-12, atol=1e-14)


def test_columns_are_the_same_on_tpus(x, cells):
    place = cells.locate(jnp.asarray(x))
    table = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2, cells.count)))
    for gathered, picked in zip(
        place._gathered(table), place._picked(table), strict=True
    ):
        np.testing.assert_array_equal(picked, gathered)


@pytest.mark.parametrize(
    "platform, gathers, scatters", [("tpu", False, False), ("cuda", True, False)]
)
def test_each_platform_has_its_own_way(lowered, platform, gathers, scatters):
    def solve(y):
        return ib.solve(y, -0.5, 10.0, ib.Uniform((-1,)), solver=option).value

    option = ib.MeanField(cells=(63,), pairwise_max_size=0)
    text = lowered(platform, solve, jnp.ones((2, 200), jnp.float32))
    assert ("stablehlo.gather" in text) == gathers
    assert ("stablehlo.scatter" in text) == scatters
