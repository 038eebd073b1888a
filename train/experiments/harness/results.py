"""The rows of an experiment: its results.csv, and how to pick from them. No JAX."""

import contextlib
import csv
import fcntl
import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from train.errors import UserError
from train.runs.files import write_text

Point = dict[str, Any]  # what is measured at once, such as one variant at one eps
Row = dict[str, Any]  # named numbers, and the names of the point


def label(point: Point) -> str:
    """{"variant": "free", "fraction": 0.5} -> "variant=free fraction=0.5"."""
    return " ".join(f"{name}={value}" for name, value in point.items())


class Results:
    """results.csv: a line for every row, each beginning with the label of its point.

    A point is there whole or not at all. Several processes may add points to one
    file at the same time: whoever adds reads the file again under a lock, so nothing
    that another process wrote is lost.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder, "results.csv")

    def has(self, point: Point) -> bool:
        """Whether the point has been measured, by this process or by another."""
        return _holds(self._lines(), point)

    def add(self, point: Point, rows: Iterable[Row]) -> None:
        """Append the rows of a point, unless another process did so meanwhile."""
        with _locked(self.path.with_name(".results.lock")):
            lines = self._lines()
            if _holds(lines, point):
                return
            lines += [{"point": label(point)} | point | row for row in rows]
            write_text(self.path, _csv(lines))

    def rows(self) -> list[Row]:
        """The rows as a reader of the file gets them."""
        return read(self.path)

    def _lines(self) -> list[dict[str, str]]:
        # As text, so that what is written again stays as it is.
        return _read_text(self.path) if self.path.exists() else []


def read(path: str | Path) -> list[Row]:
    """The rows of a results.csv: numbers as floats, empty cells as NaN.

    Raises:
        UserError: the file is damaged, or there is no such file.
    """
    return [
        {name: _value(text) for name, text in line.items()} for line in _read_text(path)
    ]


def pick(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows that have these values."""
    return [row for row in rows if all(row.get(k) == v for k, v in wanted.items())]


def column(rows: Iterable[Row], name: str) -> np.ndarray:
    """The numbers of a column, float64."""
    return np.array([row[name] for row in rows], float)


def unique(rows: Iterable[Row], name: str) -> list:
    """The values of a column, each once, in order of appearance."""
    return list(dict.fromkeys(row[name] for row in rows))


def rounded(**values: Any) -> Row:
    """The values as a row: floats of six decimals."""
    return {name: round(float(value), 6) for name, value in values.items()}


def not_finite(seeds: int, **same: Any) -> list[Row]:
    """The rows of a training whose loss did not stay finite: one a seed."""
    return [same | {"seed": seed, "finite": 0} for seed in range(seeds)]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait for, and hold, the lock of a folder; a process that dies lets go of it."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _holds(lines: list[dict[str, str]], point: Point) -> bool:
    return any(line["point"] == label(point) for line in lines)


def _csv(lines: list[Row]) -> str:
    columns = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _value(text: str) -> float | str:
    try:
        return float(text) if text else math.nan
    except ValueError:
        return text


def _read_text(path: str | Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            lines = list(reader)
            columns = reader.fieldnames or ()
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _damaged(path, str(error)) from error
    if "point" not in columns:
        raise _damaged(path, "its first line does not name the column 'point'")
    for number, line in enumerate(lines, 2):
        # DictReader puts cells without a name under None, and None into absent cells.
        if None in line or None in line.values():
            raise _damaged(path, f"line {number} does not have {len(columns)} cells")
    return lines


def _damaged(path: str | Path, reason: str) -> UserError:
    return UserError(
        f"{path} is damaged: {reason}. Delete it to measure its points again"
    )
