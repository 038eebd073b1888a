"""Fig. 3: how much training data a network needs."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from train.experiments.harness import style
from train.experiments.harness.results import Point, Row, pick, unique
from train.experiments.harness.statistics import crossing, curve, paired_difference
from train.experiments.harness.study import Study

TITLE = "Best test accuracy against the share of training data (Fig. 3)"
PAPER = "IBNN needs 29-82% of the data for the SM's best accuracy."
FRACTIONS = (1.0, 0.6, 0.3, 0.1)
QUICK_FRACTIONS = (1.0, 0.3)


def points(study: Study) -> list[Point]:
    fractions = QUICK_FRACTIONS if study.options.quick else FRACTIONS
    return [{"variant": v, "fraction": f} for v in study.variants() for f in fractions]


def measure(study: Study, point: Point) -> list[Row]:
    fraction = study.options.train_fraction * point["fraction"]
    return study.outcomes(point["variant"], train_fraction=fraction)


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    axis = figure.subplots()
    for variant in unique(rows, "variant"):
        mine = pick(rows, variant=variant)
        style.band(axis, mine, "fraction", "best", variant, scale=100)
    dashed = {"linestyle": "--", "color": "#e377a2", "linewidth": 1}
    axis.axhline(100 * _sm_best(rows), label="SM's best", **dashed)
    for variant, share in _needed(rows).items():
        if share is not None:
            axis.axvline(share, linestyle=":", color=style.colour(variant), linewidth=1)
    axis.set(xlabel="share of the training data", ylabel="best test accuracy, %")
    axis.legend(fontsize=8)


def _sm_best(rows: Sequence[Row]) -> float:
    """The best of the SM's median curve; in a short training it need not be its end."""
    return curve(pick(rows, variant="sm"), "fraction", "best")[1].max()


def _needed(rows: Sequence[Row]) -> dict[str, float | None]:
    """Variant -> the share of the data with which its median reaches the SM's best.

    None where it never does.
    """
    shares = {}
    for variant in unique(rows, "variant")[1:]:
        x, middle, *_ = curve(pick(rows, variant=variant), "fraction", "best")
        shares[variant] = crossing(x, middle, _sm_best(rows))
    return shares


def verdict(rows: Sequence[Row]) -> str:
    parts = [f"The SM's best median is {style.percent(_sm_best(rows))}"]
    largest = max(unique(rows, "fraction"))
    sm = pick(rows, variant="sm", fraction=largest)
    differences = []
    for variant, share in _needed(rows).items():
        mine = pick(rows, variant=variant, fraction=largest)
        differences.append(paired_difference(mine, sm, "best"))
        if share is None:
            needs = "never reaches that"
        else:
            most = "at most " if share == min(unique(rows, "fraction")) else ""
            needs = f"reaches that with {most}{style.percent(share)} of the data"
        parts.append(
            f"{style.name(variant)} {needs} (minus SM on all of the data, points: "
            f"{style.points(differences[-1])})"
        )
    text = "; ".join(parts) + "."
    return text + style.paired(differences) + style.diverged(rows)
