"""The two concentric arrows of Fig. 2."""

from collections.abc import Callable

import numpy as np

from train.data.dataset import Dataset

# In [-1, 1] x [-1, 1] with y pointing down: class 1 is a trapezoid with an arrow-shaped
# hole, class 0 the arrow in it.
TRAPEZOID = np.array(
    [(-0.868, -0.851), (-0.868, 0.872), (0.975, 0.183), (0.975, -0.149)]
)
HOLE = np.array([(-0.790, -0.597), (0.802, 0.028), (-0.790, 0.653), (-0.295, 0.027)])
ARROW = np.array([(0.671, 0.028), (-0.620, -0.466), (-0.164, 0.027), (-0.620, 0.523)])


def inside(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Which points [N, 2] lie inside the polygon [K, 2] (even-odd rule)? bool [N]."""
    x, y = points[:, None, 0], points[:, None, 1]
    (x0, y0), (x1, y1) = polygon.T, np.roll(polygon, -1, axis=0).T
    straddles = (y0 > y) != (y1 > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
    return (straddles & (x < crossing)).sum(axis=1) % 2 == 1


def arrows(train: int = 2000, test: int = 2000, seed: int = 0) -> Dataset:
    """The two arrows: uniform points of both shapes, balanced, in random order.

    Images are [N, 1, 2, 1], float32: the two coordinates as a picture of two pixels,
    in [-1, 1].

    Raises:
        ValueError: train or test is odd or less than 2.
    """
    for name, count in (("train", train), ("test", test)):
        if count < 2 or count % 2:
            raise ValueError(
                f"{name} must be an even number of points, at least 2, not {count}"
            )
    rng, half = np.random.default_rng(seed), (train + test) // 2
    shapes = (
        _sample(rng, half, lambda q: inside(ARROW, q)),
        _sample(rng, half, lambda q: inside(TRAPEZOID, q) & ~inside(HOLE, q)),
    )
    parts = []
    for start, count in ((0, train // 2), (train // 2, test // 2)):
        points = np.concatenate([shape[start : start + count] for shape in shapes])
        labels = np.repeat(np.arange(2, dtype=np.int32), count)
        order = rng.permutation(2 * count)
        parts.append(points[order].astype(np.float32).reshape(-1, 1, 2, 1))
        parts.append(labels[order])
    return Dataset("arrows", 2, *parts)


def _sample(rng, count: int, accept: Callable) -> np.ndarray:
    """The first `count` uniform points of the square that are accepted."""
    found = np.empty((0, 2))
    while len(found) < count:
        points = rng.uniform(-1, 1, (4096, 2))
        found = np.concatenate([found, points[accept(points)]])
    return found[:count]
