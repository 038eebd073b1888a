"""How every benchmark measures, and what it leaves: a table, JSON, CSV, a picture."""

import csv
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import jax
import numpy as np


@dataclass
class Report:
    """What a benchmark found.

    Args:
        rows: all that was measured.
        columns: what the printed table shows.
        draw: draw(figure) makes the picture.
    """

    rows: list[dict]
    columns: list[str]
    draw: Callable


def seconds(f: Callable, *args, repetitions: int = 10) -> float:
    """Median wall time of f(*args), compiled and warmed up, its output waited for."""
    return alternating({"f": lambda: f(*args)}, repetitions)["f"]


def alternating(functions: dict, repetitions: int = 10) -> dict[str, float]:
    """Median wall times of calls that take turns: a busy machine slows all alike."""
    times = {name: [] for name in functions}
    for f in functions.values():
        for _ in range(2):
            jax.block_until_ready(f())
    for _ in range(repetitions):
        for name, f in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(f())
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(t)) for name, t in times.items()}


def setup() -> dict:
    """Machine and versions."""
    versions = {}
    for name in ("jax", "jaxlib", "flax", "jaxopt", "optimistix", "torchdeq", "torch"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    device = jax.devices()[0]
    return {
        "device": f"{device.platform} {device.device_kind}",
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": versions,
        "protocol": "compiled and warmed up by two calls, waited for; medians",
    }


def publish(report: Report, name: str, size: str, out: str) -> None:
    """Print the table; write name.json, name.csv and name.png."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    document = {"benchmark": name, "size": size, **setup(), "rows": report.rows}
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    fields = list(dict.fromkeys(key for row in report.rows for key in row))
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(report.rows)
    print(table(report.rows, report.columns))
    draw(report, folder / f"{name}.png")
    print(f"in {folder}: {name}.json, {name}.csv, {name}.png")


def table(rows: list[dict], columns: list[str]) -> str:
    """Rows as aligned text."""
    cells = [[_text(row.get(c, "")) for c in columns] for row in rows]
    widths = [
        max(len(c), *(len(line[i]) for line in cells)) for i, c in enumerate(columns)
    ]
    lines = [columns, ["-" * w for w in widths], *cells]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip()
        for line in lines
    )


def _text(value):
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def draw(report: Report, path: Path) -> None:
    """Save the picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(9, 4), layout="constrained")
    report.draw(figure)
    figure.savefig(path, dpi=120)
    plt.close(figure)
