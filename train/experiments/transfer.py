"""The supplementary weight transfer: lam switched on in a trained standard network.

Nothing is trained again.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from train.experiments.harness import style
from train.experiments.harness.results import Point, Row, column, not_finite, rounded
from train.experiments.harness.statistics import curve
from train.experiments.harness.study import Study

if TYPE_CHECKING:
    from jax import Array

    from ibnn_jax import UCN

TITLE = "lam swept in a trained SM network (Supplementary Information)"
PAPER = (
    "weights of the SM serve an IBNN: with a margin M, classes stay apart by at least "
    "M - 2 |lam| sqrt(D) (Eq. S11)."
)
EPS = 0.02
LAMS = (-2.0, -1.0, -0.5, -0.2, -0.1, -0.05, -0.02, 0.0, 0.02, 0.05, 0.09)
QUICK_LAMS = (-0.5, 0.0, 0.05)


def points(study: Study) -> list[Point]:
    return [{"lam": lam} for lam in (QUICK_LAMS if study.options.quick else LAMS)]


def measure(study: Study, point: Point) -> list[Row]:
    """A row per seed.

    certified, certified_sharper: shares of the images that Eq. (S11), and its sharper
    form, promise to leave right. distance: the share of |lam| sqrt(D) that the layer's
    output moves, at most. margin: the median over the images.
    """
    ensemble = study.ensemble("sm")
    if ensemble is None:
        names = ("accuracy", "pgd", "certified", "certified_sharper", "distance")
        return not_finite(study.options.seeds, **dict.fromkeys(names, np.nan))
    images, labels = study.attacked()
    found = ensemble.each(_measure, images, labels, np.float32(point["lam"]))
    found = {name: np.asarray(values) for name, values in found.items()}
    return [
        {"seed": seed}
        | rounded(
            accuracy=found["right"][seed].mean(),
            pgd=found["kept"][seed].mean(),
            certified=found["certified"][seed].mean(),
            certified_sharper=found["certified_sharper"][seed].mean(),
            distance=found["distance"][seed].max(),
            margin=np.median(found["margin"][seed]),
        )
        | {"finite": 1}
        for seed in range(ensemble.seeds)
    ]


def _measure(
    sm: "UCN", seed: "Array", images: "Array", labels: "Array", lam: "Array"
) -> dict[str, "Array"]:
    """For every image: whether it is right, also attacked, and what is promised."""
    import jax
    import jax.numpy as jnp

    from ibnn_jax.attacks import pgd
    from train.experiments.harness import attacking

    model = attacking.implicit(sm, lam)

    def batch(images, labels, keys):
        y = sm.blocks[0].conv(images)
        z = model.blocks[0].implicit(y)
        moved = (jax.nn.relu(z) - jax.nn.relu(y)).reshape(len(y), -1)
        allowed = jnp.abs(lam) * jnp.sqrt(y[0].size)
        attack = pgd(model, images, labels, keys[0], eps=EPS, steps=10)
        return {
            "right": model(images).argmax(-1) == labels,
            "kept": ~attack.fooled,
            "distance": jnp.linalg.norm(moved, axis=1) / jnp.maximum(allowed, 1e-9),
        } | promised(sm, images, labels, lam)

    keys = jax.random.split(jax.random.fold_in(jax.random.key(3), seed), len(labels))
    return attacking.in_batches(batch, images, labels, keys)


def promised(
    sm: "UCN", images: "Array", labels: "Array", lam: "Array"
) -> dict[str, "Array"]:
    """The images that must stay right by Eq. (S11), and by its sharper form.

    NaN for networks of several layers, of which the equation says nothing.
    """
    import jax.numpy as jnp

    from ibnn_jax import robustness

    if len(sm.blocks) > 1:
        unknown = jnp.full(len(images), jnp.nan)
        return dict.fromkeys(("certified", "certified_sharper", "margin"), unknown)
    margin = robustness.hidden_margins(sm, images, labels)
    n, groups = images[0, ..., 0].size, sm.blocks[0].norm.num_features
    # Two classes are apart by twice the distance of an image from their boundary.
    layer = (2 * margin, lam, n, groups)
    return {
        "certified": robustness.paper_transfer_margin(*layer) > 0,
        "certified_sharper": robustness.transfer_margin(*layer) > 0,
        "margin": margin,
    }


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    axis = figure.subplots()
    lines = {
        "accuracy": ("clean", "#3b6fb6"),
        "pgd": (f"PGD, eps {EPS}", "#d1495b"),
        "certified": ("promised by Eq. (S11)", "#66a182"),
        "certified_sharper": ("promised by its sharper form", "#8d6a9f"),
    }
    for name, (text, colour) in lines.items():
        if name in rows[0]:
            line = {"color": colour, "label": text}
            style.band(axis, rows, "lam", name, scale=100, **line)
    axis.set_xscale("symlog", linthresh=0.02)
    axis.axvline(0, color="gray", linewidth=0.8)
    axis.set(xlabel="lam given to the trained SM network", ylabel="accuracy, %")
    axis.legend(fontsize=8)


def verdict(rows: Sequence[Row]) -> str:
    if not any(row.get("finite", 1) for row in rows):
        return "The loss of the SM did not stay finite: there is nothing to transfer."
    lams, accuracy, *_ = curve(rows, "lam", "accuracy")
    kept = curve(rows, "lam", "pgd")[1]
    zero = int(np.flatnonzero(lams == 0)[0])
    best = int(np.nanargmax(kept))
    low, high = _run_around(zero, accuracy >= accuracy[zero] - 0.01)
    below = max(zero - 1, 0)
    moved = [row for row in rows if row["lam"] != 0]
    distance = style.percent(np.nanmax(column(moved, "distance")))
    return (
        f"The SM has {style.percent(accuracy[zero])}, and {style.percent(kept[zero])} "
        "under white-box PGD. Accuracy stays within one point for lam in "
        f"[{lams[low]:g}, {lams[high]:g}]; PGD accuracy is best at lam {lams[best]:g}: "
        f"{style.percent(kept[best])}. At lam {lams[below]:g} "
        f"{_promise_text(rows, below)}; the layer moves by at most {distance} of what "
        "Eq. (S9) allows, |lam| sqrt(D)."
    )


def _run_around(place: int, holds: np.ndarray) -> tuple[int, int]:
    """The first and last place of the run of places that hold around this one."""
    fails = np.flatnonzero(~holds)
    below, above = fails[fails < place], fails[fails > place]
    low = below[-1] + 1 if len(below) else 0
    high = above[0] - 1 if len(above) else len(holds) - 1
    return int(low), int(high)


def _promise_text(rows: Sequence[Row], place: int) -> str:
    """The shares of images that the two bounds promise, at one of the lams."""
    paper = curve(rows, "lam", "certified")[1][place]
    text = f"the bound of Eq. (S11) promises {style.percent(paper)}"
    sharper_form = "M - 2 |lam| sqrt((D^2 - 1) / (3 D))"
    if "certified_sharper" not in rows[0]:
        return f"{text} (not measured here: its sharper form {sharper_form})"
    sharper = curve(rows, "lam", "certified_sharper")[1][place]
    return f"{text}, its sharper form {sharper_form} {style.percent(sharper)}"
