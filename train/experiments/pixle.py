"""Fig. 5: accuracy under Pixle, which moves pixels and sees only probabilities."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.experiments.harness import style
from train.experiments.harness.results import (
    Point,
    Row,
    column,
    not_finite,
    pick,
    rounded,
    unique,
)
from train.experiments.harness.statistics import paired_difference
from train.experiments.harness.study import Study

if TYPE_CHECKING:
    from jax import Array

    from ibnn_jax import UCN

TITLE = "Accuracy under Pixle, 10 restarts x 5 iterations, 3 x 3 patches (Fig. 5)"
PAPER = "IBNN keeps more accuracy than the SM on every data set."
SIZE = (10, 4.5)
# The authors' program writes to the transposed place (see `ibnn_jax.attacks.pixle`);
# the other two show what difference that makes.
MAPPINGS = {
    "similarity_transposed": "by similarity, as in the authors' program",
    "similarity": "by similarity",
    "random": "at random",
}


def points(study: Study) -> list[Point]:
    return [{"variant": v, "mapping": m} for v in study.variants() for m in MAPPINGS]


def measure(study: Study, point: Point) -> list[Row]:
    ensemble = study.ensemble(point["variant"])
    if ensemble is None:
        return not_finite(study.options.seeds)
    images, labels = study.attacked()
    right, fooled = ensemble.each(_attack, images, labels, mapping=point["mapping"])
    clean, kept = np.asarray(right).mean(1), 1 - np.asarray(fooled).mean(1)
    return [
        {"seed": seed}
        | rounded(clean=clean[seed], accuracy=kept[seed])
        | {"images": len(labels), "epoch": epoch, "finite": 1}
        for seed, epoch in enumerate(ensemble.epochs)
    ]


def _attack(
    model: "UCN", seed: "Array", images: "Array", labels: "Array", *, mapping: str
) -> tuple["Array", "Array"]:
    """Which clean images the network gets right, and which fool it when attacked."""
    import jax

    from ibnn_jax.attacks import pixle
    from train.experiments.harness import attacking

    def batch(images, labels, keys):
        attack = pixle(
            model,
            images,
            labels,
            keys[0],
            restarts=10,
            iterations=5,
            patch=(3, 3),
            mapping=mapping,
        )
        return model(images).argmax(-1) == labels, attack.fooled

    keys = jax.random.split(jax.random.fold_in(jax.random.key(2), seed), len(labels))
    return attacking.in_batches(batch, images, labels, keys)


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    for axis, mapping in zip(figure.subplots(1, len(MAPPINGS), sharey=True), MAPPINGS):
        variants = unique(rows, "variant")
        for place, variant in enumerate(variants):
            _bar(axis, place, variant, pick(rows, variant=variant, mapping=mapping))
        axis.set_title(f"pixels copied {MAPPINGS[mapping]}", fontsize=8)
        names = [variant.replace(" ", "\n") for variant in variants]
        axis.set_xticks(range(len(names)), names, fontsize=8)
    figure.axes[0].set_ylabel("accuracy, %: clean (pale) and attacked")


def _bar(axis: Axes, place: int, variant: str, rows: Sequence[Row]) -> None:
    """Medians of clean and attacked accuracy, with the range of the seeds."""
    for name, alpha in (("clean", 0.3), ("accuracy", 1)):
        values = 100 * column(rows, name)
        axis.bar(place, np.median(values), color=style.colour(variant), alpha=alpha)
        ends = [values.min(), values.max()]
        axis.plot([place, place], ends, color="black", linewidth=1.2)


def _medians(rows: Sequence[Row], name: str) -> dict[str, float]:
    """Variant -> the median of a column."""
    return {
        variant: float(np.median(column(pick(rows, variant=variant), name)))
        for variant in unique(rows, "variant")
    }


def verdict(rows: Sequence[Row]) -> str:
    parts, every = [], []
    for mapping, text in MAPPINGS.items():
        chosen = pick(rows, mapping=mapping)
        sm = pick(chosen, variant="sm")
        numbers = []
        for variant, kept in _medians(chosen, "accuracy").items():
            number = f"{style.name(variant)} {style.percent(kept)}"
            if variant != "sm":
                mine = pick(chosen, variant=variant)
                every.append(paired_difference(mine, sm, "accuracy"))
                number += f" (minus SM, points: {style.points(every[-1])})"
            numbers.append(number)
        parts.append(f"Pixels copied {text}: {', '.join(numbers)}")
    clean = ", ".join(
        f"{style.name(variant)} {style.percent(median)}"
        for variant, median in _medians(rows, "clean").items()
    )
    text = ". ".join([*parts, f"Clean: {clean}"]) + "."
    return text + style.paired(every) + style.epochs(rows) + style.diverged(rows)
