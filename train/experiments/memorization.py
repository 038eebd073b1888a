"""Fig. 8: what wrong labels do."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from train.experiments.harness import style
from train.experiments.harness.results import Point, Row, pick, unique
from train.experiments.harness.statistics import Difference, paired_difference
from train.experiments.harness.study import Study

TITLE = "Best test accuracy against the share of wrong training labels (Fig. 8)"
PAPER = (
    "the advantage of IBNN's best accuracy over the SM's is larger with wrong labels "
    "than without."
)
SIZE = (7, 6)
SHARES = (0.0, 0.25, 0.5)
QUICK_SHARES = (0.0, 0.4)


def points(study: Study) -> list[Point]:
    shares = QUICK_SHARES if study.options.quick else SHARES
    return [{"variant": v, "wrong": s} for v in study.variants() for s in shares]


def measure(study: Study, point: Point) -> list[Row]:
    return study.outcomes(point["variant"], label_noise=point["wrong"])


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    top, bottom = figure.subplots(2, 1, sharex=True)
    for variant in unique(rows, "variant"):
        mine = pick(rows, variant=variant)
        style.band(top, mine, "wrong", "best", variant, scale=100)
    for place, (variant, advantage) in enumerate(_advantages(rows).items()):
        mean, low, high = (
            100 * np.array([getattr(d, name) for d in advantage.values()])
            for name in ("mean", "low", "high")
        )
        errors = np.stack([mean - low, high - mean])
        line = {"marker": ".", "capsize": 3, "color": style.colour(variant)}
        beside = np.array(list(advantage)) + 0.004 * place  # bars do not overlap
        bottom.errorbar(beside, mean, errors, **line)
    bottom.axhline(0, color="gray", linewidth=0.8)
    top.set(ylabel="best test accuracy, %")
    bottom.set(
        xlabel="share of wrong labels", ylabel="IBNN - SM by seed, points (mean, CI)"
    )
    top.legend(fontsize=8)


def _advantages(rows: Sequence[Row]) -> dict[str, dict[float, Difference]]:
    """Variant -> share of wrong labels -> best accuracy minus the SM's."""
    return {
        variant: {
            share: paired_difference(
                pick(rows, variant=variant, wrong=share),
                pick(rows, variant="sm", wrong=share),
                "best",
            )
            for share in sorted(unique(rows, "wrong"))
        }
        for variant in unique(rows, "variant")
        if variant != "sm"
    }


def verdict(rows: Sequence[Row]) -> str:
    parts, every = [], []
    for variant, advantage in _advantages(rows).items():
        clean, *wrong = (difference.mean for difference in advantage.values())
        word = "larger" if all(mean > clean for mean in wrong) else "not larger"
        text = ", ".join(
            f"{style.points(difference)} at {style.percent(share)}"
            for share, difference in advantage.items()
        )
        parts.append(
            f"{style.name(variant)} minus SM, points: {text} ({word} in the mean at "
            "every share of wrong labels)"
        )
        every += advantage.values()
    return "; ".join(parts) + "." + style.paired(every) + style.diverged(rows)
