"""The learning rates of the epochs."""

import numpy as np
import pytest

from train.engine import schedule


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 7, 80])
def test_triangular(epochs):
    rates = schedule.triangular(epochs)
    assert rates.shape == (epochs,) and rates.dtype == np.float32
    np.testing.assert_allclose(rates, rates[::-1])
    assert rates.max() == np.float32(0.01)
    if epochs > 2:
        assert rates[0] == np.float32(0.001)
        steps = np.diff(rates[: (epochs + 1) // 2])
        np.testing.assert_allclose(steps, steps.mean() if len(steps) else 0, rtol=1e-3)


def test_triangular_is_the_papers():
    rates = schedule.triangular(80)
    np.testing.assert_allclose(rates[[0, 39, 40, 79]], [0.001, 0.01, 0.01, 0.001])


def test_constant_does_not_depend_on_the_number_of_epochs():
    np.testing.assert_array_equal(
        schedule.constant(9, 0.1, 0.2)[:5], schedule.constant(5, 0.1, 0.2)
    )
    assert set(schedule.constant(9, 0.1, 0.2)) == {np.float32(0.2)}


def test_cosine_goes_down_from_high_to_low():
    rates = schedule.cosine(5, 0.1, 0.2)
    np.testing.assert_allclose(rates[[0, 2, 4]], [0.2, 0.15, 0.1], rtol=1e-6)
    assert (np.diff(rates) < 0).all() and len(schedule.cosine(1)) == 1


@pytest.mark.parametrize("name", schedule.SCHEDULES)
def test_no_epochs_are_refused(name):
    with pytest.raises(ValueError, match="at least 1"):
        schedule.SCHEDULES[name](0)
