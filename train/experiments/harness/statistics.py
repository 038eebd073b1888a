"""Statistics over the seeds: percentile ranges and paired differences. No JAX."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from train.experiments.harness.results import Row, column, pick, unique
from train.runs.summary import bootstrap_interval


def curve(
    rows: Sequence[Row], x: str, y: str, coverage: float = 0.9
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The median of y at every x, and the percentile range of this coverage.

    The range describes the seeds that were run (for coverage 0.9 from their 5th to
    their 95th percentile); it is not a confidence interval of the median.

    Returns:
        arrays x (ascending), median, low, high; NaN where no y is finite.
    """
    xs = np.array(sorted(unique(rows, x)))
    quantiles = (0.5, (1 - coverage) / 2, (1 + coverage) / 2)
    stats = []
    for at in xs:
        values = column(pick(rows, **{x: at}), y)
        known = np.isfinite(values).any()
        stats.append(np.nanquantile(values, quantiles) if known else [math.nan] * 3)
    return xs, *np.array(stats).reshape(-1, 3).T


def crossing(x: np.ndarray, y: np.ndarray, level: float) -> float | None:
    """The least x at which the line through the points reaches the level.

    Args:
        x: ascending.

    Returns:
        None if the line does not reach it.
    """
    reached = np.flatnonzero(y >= level)
    if not len(reached):
        return None
    i = reached[0]
    if i == 0:
        return float(x[0])
    share = (level - y[i - 1]) / (y[i] - y[i - 1])
    return float(x[i - 1] + share * (x[i] - x[i - 1]))


@dataclasses.dataclass(frozen=True)
class Difference:
    """The mean difference of two models, taken seed by seed.

    mean: over the seeds that both models have. low, high: its 95% bootstrap confidence
    interval; NaN for fewer than two seeds. seeds: how many they are.
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def is_positive(self) -> bool:
        """Whether the whole confidence interval lies above zero."""
        return self.low > 0

    @property
    def is_negative(self) -> bool:
        """Whether the whole confidence interval lies below zero."""
        return self.high < 0


def paired_difference(
    first: Sequence[Row], second: Sequence[Row], y: str
) -> Difference:
    """y of `first` minus y of `second`, paired by seed: a seed has the same initial
    weights and the same order of the data in both models, so the difference varies
    less than either.

    Seeds whose y is not finite in one of them are left out.
    """
    known = [
        {row["seed"]: row[y] for row in rows if math.isfinite(row[y])}
        for rows in (first, second)
    ]
    seeds = sorted(known[0].keys() & known[1].keys())
    values = np.array([known[0][seed] - known[1][seed] for seed in seeds], float)
    if not len(values):
        return Difference(math.nan, math.nan, math.nan, 0)
    low, high = bootstrap_interval(values) or (math.nan, math.nan)
    return Difference(float(values.mean()), low, high, len(values))
