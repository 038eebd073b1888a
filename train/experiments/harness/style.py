"""How figures and verdicts name and draw things: one colour and one phrase each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from train.experiments.harness.results import Row, pick, unique
from train.experiments.harness.statistics import Difference, curve

COLOURS = {"sm": "#3b6fb6", "trained": "#d1495b", "free": "#8d6a9f", "fixed": "#66a182"}
NAMES = {
    "sm": "SM",
    "trained": "IBNN, lam trained in bounds",
    "free": "IBNN, lam free",
    "fixed": "IBNN, lam fixed at",
}
FEW = 8  # seeds; with fewer a bootstrap interval covers less than it says


def colour(variant: str) -> str:
    """The colour of a variant, the same in every figure."""
    return COLOURS[variant.split()[0]]


def name(variant: str) -> str:
    """The variant in words: "fixed -0.1" -> "IBNN, lam fixed at -0.1"."""
    kind, *lam = variant.split()
    return " ".join([NAMES[kind], *lam])


def band(
    axis: Axes,
    rows: Sequence[Row],
    x: str,
    y: str,
    variant: str | None = None,
    coverage: float = 0.9,
    scale: float = 1.0,
    **line: Any,
) -> None:
    """Draw the median of y over x, and its percentile range.

    Args:
        variant: gives the colour and the label, unless `line` does.
        scale: 100 to draw shares in percent.
        line: options of the median's line, and "color" of both.
    """
    xs, middle, low, high = curve(rows, x, y, coverage)
    options = {"marker": ".", "linewidth": 1.4}
    if variant is not None:
        options |= {"color": colour(variant), "label": name(variant)}
    options |= line
    axis.plot(xs, scale * middle, **options)
    axis.fill_between(
        xs, scale * low, scale * high, color=options["color"], alpha=0.15, linewidth=0
    )


def percent(value: float | None) -> str:
    """0.5 -> "50.0%"; "-" for None and for what is not finite."""
    return "-" if value is None or not np.isfinite(value) else f"{100 * value:.1f}%"


def points(difference: Difference) -> str:
    """A difference of two shares in points: "+1.50 [+0.20, +2.80]".

    "-" if the models have no seed in common.
    """
    mean, low, high = (
        # + 0.0 makes a rounded -0.0 a 0.0
        f"{round(100 * v, 2) + 0.0:+.2f}"
        for v in (difference.mean, difference.low, difference.high)
    )
    if difference.seeds == 0:
        return "-"
    return f"{mean} [{low}, {high}]" if difference.seeds > 1 else f"{mean} [one seed]"


def paired(differences: Sequence[Difference]) -> str:
    """The sentence that says what the brackets of `points` are; "" without any."""
    seeds = sorted({difference.seeds for difference in differences} - {0})
    if not seeds:
        return ""
    few = ", which with so few seeds is little more than their range"
    return (
        f" Differences are means over {' or '.join(map(str, seeds))} seeds, taken "
        "seed by seed; in brackets their bootstrap 95% confidence "
        f"interval{few if min(seeds) < FEW else ''}."
    )


def diverged(rows: Sequence[Row]) -> str:
    """A sentence on the variants whose loss did not stay finite; "" without any."""
    found = [
        name(variant)
        for variant in unique(rows, "variant")
        if any(row.get("finite") == 0 for row in pick(rows, variant=variant))
    ]
    return f" The loss did not stay finite for: {'; '.join(found)}." if found else ""


def epochs(rows: Sequence[Row]) -> str:
    """A sentence on the epochs of the attacked networks, on which robustness depends.

    "" for files that do not say.
    """
    parts = []
    for variant in unique(rows, "variant"):
        of_seed = {
            row["seed"]: row["epoch"]
            for row in pick(rows, variant=variant)
            if row.get("epoch", np.nan) > 0
        }
        if of_seed:
            numbers = ", ".join(f"{of_seed[seed]:g}" for seed in sorted(of_seed))
            parts.append(f"{name(variant)} {numbers}")
    if not parts:
        return ""
    return (
        " Attacked are the networks of each seed's lowest test loss, of epochs "
        f"{'; '.join(parts)}."
    )
