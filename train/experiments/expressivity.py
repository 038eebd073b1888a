"""Fig. 6: what a network of a given number of parameters can do."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from train.experiments.harness import style
from train.experiments.harness.results import Point, Row, pick, unique
from train.experiments.harness.statistics import Difference, paired_difference
from train.experiments.harness.study import Study

TITLE = "Best test accuracy against the number of parameters (Fig. 6)"
PAPER = (
    "IBNN does better than the SM with the same number of parameters, at every size."
)
# C of UCN(L, C), around the paper's C of each data set; L is the paper's.
CHANNELS = {"cifar10": (4, 8, 12, 16)}
OTHER_CHANNELS = (1, 2, 3, 5)


def points(study: Study) -> list[Point]:
    channels = CHANNELS.get(study.options.dataset, OTHER_CHANNELS)
    chosen = channels[:2] if study.options.quick else channels
    return [{"variant": v, "channels": c} for v in study.variants() for c in chosen]


def measure(study: Study, point: Point) -> list[Row]:
    rows = study.outcomes(point["variant"], channels=point["channels"])
    # Without the one lam per layer, so that a network and its twin have one abscissa.
    parameters = study.parameters("sm", channels=point["channels"])
    return [row | {"parameters": parameters} for row in rows]


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    axis = figure.subplots()
    for variant in unique(rows, "variant"):
        mine = pick(rows, variant=variant)
        style.band(axis, mine, "parameters", "best", variant, scale=100)
    axis.set(xlabel="parameters (without lam)", ylabel="best test accuracy, %")
    axis.legend(fontsize=8)


def _differences(rows: Sequence[Row]) -> dict[str, list[Difference]]:
    """Variant -> at every size, its best accuracy minus the SM's."""
    return {
        variant: [
            paired_difference(
                pick(rows, variant=variant, parameters=size),
                pick(rows, variant="sm", parameters=size),
                "best",
            )
            for size in unique(rows, "parameters")
        ]
        for variant in unique(rows, "variant")
        if variant != "sm"
    }


def verdict(rows: Sequence[Row]) -> str:
    differences = _differences(rows)
    parts = []
    for variant, of_sizes in differences.items():
        better = sum(d.is_positive for d in of_sizes)
        worse = sum(d.is_negative for d in of_sizes)
        numbers = ", ".join(map(style.points, of_sizes))
        parts.append(
            f"{style.name(variant)} minus SM, points: {numbers}; better at {better} "
            f"and worse at {worse} of {len(of_sizes)} sizes beyond the interval"
        )
    every = [d for of_sizes in differences.values() for d in of_sizes]
    return ". ".join(parts) + "." + style.paired(every) + style.diverged(rows)
