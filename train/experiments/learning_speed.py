"""Fig. 7: how many epochs a network needs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.experiments.harness import style
from train.experiments.harness.results import Point, Row, column, pick, rounded, unique
from train.experiments.harness.statistics import curve, paired_difference
from train.experiments.harness.study import Study

TITLE = "Accuracy against epoch (Fig. 7), centred running mean of 3"
PAPER = (
    "IBNN matches the SM's best of 80 epochs in 18-25 epochs, where the SM needs more "
    "than 53."
)
# The paper's Fig. 7 departs from the channels of its other experiments for one data
# set: UCN(3, 16) instead of UCN(3, 8). --channels 8 shares networks with the others.
CHANNELS = {"cifar10": 16}


def points(study: Study) -> list[Point]:
    return [{"variant": variant} for variant in study.all_variants()]


def _channels(study: Study) -> dict[str, int | None]:
    chosen = study.options.channels or CHANNELS.get(study.options.dataset)
    return {"channels": chosen}


def measure(study: Study, point: Point) -> list[Row]:
    history, finite = study.history(point["variant"], **_channels(study))
    rows = []
    for seed in range(study.options.seeds):
        accuracy = history["test_accuracy"][seed] if history else np.array([np.nan])
        for epoch, smooth in enumerate(_running_mean(accuracy)):
            lam = history["lam"][seed, epoch].mean() if "lam" in history else 0.0
            values = rounded(accuracy=accuracy[epoch], smooth=smooth, lam=lam)
            same = {"seed": seed, "epoch": epoch + 1}
            rows.append(same | values | {"finite": int(finite)})
    return rows


def _running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of each value and its two neighbours; the ends count twice there."""
    padded = np.pad(values, 1, mode="edge")
    return np.convolve(padded, np.full(3, 1 / 3), mode="valid")


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    axis, lam_axis = figure.subplots(1, 2, width_ratios=(2, 1))
    for variant in unique(rows, "variant"):
        mine = pick(rows, variant=variant)
        line = {"linestyle": _dash(rows, variant), "label": style.name(variant)}
        style.band(axis, mine, "epoch", "smooth", variant, scale=100, **line)
        if variant != "sm":
            style.band(lam_axis, mine, "epoch", "lam", variant, **line)
    _mark_best(axis, pick(rows, variant="sm"))
    axis.set(xlabel="epoch", ylabel="test accuracy, %")
    axis.legend(fontsize=7)
    lam_axis.set(xlabel="epoch", title="lam")
    lam_axis.axhline(0.1, color="gray", linewidth=0.8, linestyle=":")


def _mark_best(axis: Axes, sm: Sequence[Row]) -> None:
    """A line from the SM's best to its epoch; and limits from the SM's accuracies,
    because a variant that fails would flatten the others.
    """
    best, epoch = _best(sm)
    x, y = [1, epoch, epoch], [100 * best, 100 * best, axis.get_ylim()[0]]
    axis.plot(x, y, "--", color="#e377a2", linewidth=1, label="SM's best")
    accuracy = column(sm, "smooth")
    low, high = np.nanmin(accuracy), np.nanmax(accuracy)
    axis.set_ylim(100 * (low - 2 * (high - low)), None)


def _dash(rows: Sequence[Row], variant: str) -> str:
    """A line style: fixed lams share a colour, so each has a style of its own."""
    fixed = [v for v in unique(rows, "variant") if v.startswith("fixed")]
    return ("-", "--", ":", "-.")[fixed.index(variant) % 4] if variant in fixed else "-"


def _best(rows: Sequence[Row]) -> tuple[float, float]:
    """The best of the median curve, and its epoch."""
    epochs, middle, *_ = curve(rows, "epoch", "smooth")
    return middle.max(), epochs[middle.argmax()]


def _of_seeds(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The best smoothed accuracy of every seed."""
    return [
        {"seed": seed, "best": column(pick(rows, seed=seed), "smooth").max()}
        for seed in unique(rows, "seed")
    ]


def verdict(rows: Sequence[Row]) -> str:
    sm = pick(rows, variant="sm")
    best, epoch = _best(sm)
    last = max(unique(rows, "epoch"))
    parts = [
        f"The SM's best, {style.percent(best)}, comes in epoch {epoch:g} of {last:g}"
    ]
    differences = []
    for variant in unique(rows, "variant")[1:]:
        mine = pick(rows, variant=variant)
        epochs, middle, *_ = curve(mine, "epoch", "smooth")
        reached = np.flatnonzero(middle >= best)
        when = (
            f"reaches it in epoch {epochs[reached[0]]:g}"
            if len(reached)
            else "does not reach it"
        )
        differences.append(paired_difference(_of_seeds(mine), _of_seeds(sm), "best"))
        parts.append(
            f"{style.name(variant)} {when} (best {style.percent(np.nanmax(middle))}; "
            f"minus SM, points: {style.points(differences[-1])})"
        )
    text = "; ".join(parts) + "."
    return text + style.paired(differences) + style.diverged(rows)
