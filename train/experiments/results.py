"""The rows of an experiment in its results.csv, and the statistics of columns. Without JAX."""

import csv
import io
import math
from pathlib import Path

import numpy as np

from train.runs.folder import write_text


def label(point):
    """{"variant": "free", "fraction": 0.5} -> "variant=free fraction=0.5"."""
    return " ".join(f"{k}={v}" for k, v in point.items())


class Results:
    """results.csv: a line per row, led by the point it belongs to. A point is there whole or not at all."""

    def __init__(self, folder):
        self.path = Path(folder, "results.csv")
        self._rows = (
            _read_text(self.path) if self.path.exists() else []
        )  # as text, so that what is written again stays as it is

    def has(self, point):
        return any(row["point"] == label(point) for row in self._rows)

    def add(self, point, rows):
        self._rows += [{"point": label(point)} | point | row for row in rows]
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self.path, text.getvalue())

    def rows(self):
        """What a reader of the file gets."""
        return read(self.path)


def read(path):
    """The rows of a results.csv: numbers as floats, empty cells as NaN."""

    def value(text):
        try:
            return float(text) if text else math.nan
        except ValueError:
            return text

    return [
        {name: value(text) for name, text in row.items()} for row in _read_text(path)
    ]


def _read_text(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def pick(rows, **wanted):
    """The rows with these values."""
    return [row for row in rows if all(row.get(k) == v for k, v in wanted.items())]


def column(rows, name):
    return np.array([row[name] for row in rows], float)


def unique(rows, name):
    """The values of a column, each once, in order of appearance."""
    return list(dict.fromkeys(row[name] for row in rows))


def curve(rows, x, y, coverage=0.9):
    """Median of y over the rows for every x, with the interval that covers this share: arrays x, middle, low, high."""
    xs = np.array(sorted(unique(rows, x)))
    quantiles = (0.5, (1 - coverage) / 2, (1 + coverage) / 2)
    stats = [
        np.nanquantile(v, quantiles)
        if np.isfinite(v := column(pick(rows, **{x: at}), y)).any()
        else [math.nan] * 3
        for at in xs
    ]
    return xs, *np.array(stats).reshape(-1, 3).T


def crossing(x, y, level):
    """The least x at which the line through the points (x ascending) reaches the level; None if it does not."""
    reached = np.flatnonzero(y >= level)
    if not len(reached):
        return None
    i = reached[0]
    if i == 0:
        return float(x[0])
    return float(x[i - 1] + (level - y[i - 1]) / (y[i] - y[i - 1]) * (x[i] - x[i - 1]))
