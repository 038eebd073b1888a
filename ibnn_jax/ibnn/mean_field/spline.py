"""Sums of tanh between neurons as sums between the coefficients of cubic B-splines.

A function that is smooth on the scale 1 is G(t) = sum_j c_j beta(t / h - j), and a
neuron at x acts on the grid through the charges beta(x / h - j). The kernel f(x - t)
becomes a sequence of numbers f_j with

    f(x - t) ~ sum_ij beta(x / h - i) f_(i - j) beta(t / h - j),

the best one in the mean square over all x and t. In Fourier space it is

    sum_m B(k_m)^2 F(k_m) / (sum_m B(k_m)^2)^2,    B(k) = (sin(k h / 2) / (k h / 2))^4,

where k_m = k + 2 pi m / h are the images of the frequency k and F transforms f.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# What node k of a cell's four weighs, as a cubic in u, the fraction of the cell that
# lies to the left: row k holds its coefficients.
WEIGHTS = np.array([[1, -3, 3, -1], [4, 0, -6, 3], [1, 3, 3, -3], [0, 0, 0, 1]]) / 6

LEAST_TAP = 1e-6  # taps below it are left out; blocks of `grid` hold what is left


class Taps(NamedTuple):
    """Kernels between coefficients at the distances 0, 1, 2, ...

    The sign of tanh goes on forever and is left out of `step`.
    """

    slope: np.ndarray  # sech^2, even
    step: np.ndarray  # tanh - sign, odd
    moment: np.ndarray  # x sech^2, odd


@functools.cache
def taps(spacing: float) -> Taps:
    """The kernels of tanh on a grid of this spacing."""
    count, images = 8192, 6
    k = 2 * np.pi * np.fft.fftfreq(count, d=spacing)
    k_images = k + 2 * np.pi / spacing * np.arange(-images, images + 1)[:, None]
    weight = np.sinc(k_images * spacing / (2 * np.pi)) ** 8

    def best(transform):
        return (weight * transform).sum(0) / weight.sum(0) ** 2

    at_zero, image_at_zero = k == 0, np.abs(k_images) < 1e-9
    safe_k, safe_image = np.where(at_zero, 1, k), np.where(image_at_zero, 1, k_images)
    slope = best(_transform(k_images))
    step = best(np.where(image_at_zero, 0, _transform(k_images) / (1j * safe_image)))
    # The grid's own sign function has the symbol -i h cot(k h / 2).
    step += np.where(at_zero, 0, 1j * spacing / np.tan(safe_k * spacing / 2))
    moment = best(
        1j * (_transform(k_images + 1e-4) - _transform(k_images - 1e-4)) / 2e-4
    )
    sequences = [np.fft.ifft(f).real / spacing for f in (slope, step, moment)]
    largest = np.max([np.abs(f[: count // 2]) for f in sequences], axis=0)
    length = np.flatnonzero(largest > LEAST_TAP)[-1] + 1
    return Taps(*(f[:length] for f in sequences))


def _transform(k):
    """The Fourier transform of sech^2."""
    small = np.abs(k) < 1e-9
    x = np.pi * np.where(small, 1, k) / 2
    return np.where(small, 2, 2 * x / np.sinh(np.clip(x, -300, 300)))


@functools.cache
def error(spacing: float) -> float:
    """The largest error of tanh(x - t) through the grid."""
    return _largest_error(spacing, taps(spacing).step, np.tanh, far=1)


@functools.cache
def slope_error(spacing: float) -> float:
    """The largest error of sech^2(x - t) through the grid."""
    return _largest_error(spacing, taps(spacing).slope, lambda x: 1 / np.cosh(x) ** 2)


def _largest_error(
    spacing: float, kernel: np.ndarray, exact: Callable, far: int = 0
) -> float:
    """Through a grid whose kernel is even, or odd and `far` + what is given."""
    place, worst = np.linspace(0, 1, 9), 0.0
    weights = WEIGHTS @ place ** np.arange(4)[:, None]
    for cells in range(int(3 / spacing)):
        offset = np.arange(4)[:, None] - np.arange(4) - cells  # source less target
        between = far + np.pad(kernel, (0, 8))[np.abs(offset)]
        between *= np.sign(offset) ** far
        through_grid = weights.T @ between @ weights
        distance = (place[:, None] - place - cells) * spacing
        worst = max(worst, np.abs(through_grid - exact(distance)).max())
    return float(worst)
