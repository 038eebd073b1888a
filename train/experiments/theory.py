"""The Methods' theory, on trained networks.

Uniqueness, the spectrum of the layer, Jacobians, curvature, stealth attacks.
"""

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
from train.experiments.harness.study import Study, pixels

if TYPE_CHECKING:
    from jax import Array

    from ibnn_jax import UCN

TITLE = "Theory on trained networks (Methods)"
PAPER = (
    "for lam < 0 the layer never stretches (Prop. 6), the loss is (1 + lam p)^2 times "
    "as curved (Eq. 62), and a single-neuron stealth attack is unfeasible (Eq. 54); "
    "lam is below the uniqueness bound."
)
SIZE = (11, 3.6)
SPECTRUM_IMAGES = 2  # their groups of neurons make matrices of n x n
LOSS_IMAGES = 200
PROBES = 10  # random directions in which curvature is measured
STATISTICS_IMAGES = 5000  # training images that the informed stealth attacker knows
TRIGGERS = 5


def points(study: Study) -> list[Point]:
    return [
        {"variant": variant, "part": part}
        for variant in study.all_variants()
        for part in MEASURED
        if variant != "sm" or part == "stealth"
    ]


def measure(study: Study, point: Point) -> list[Row]:
    ensemble = study.ensemble(point["variant"])
    if ensemble is None:
        return not_finite(study.options.seeds)
    found = MEASURED[point["part"]](study, ensemble)
    return [
        {"seed": seed}
        | rounded(**{name: values[seed] for name, values in found.items()})
        | {"finite": 1}
        for seed in range(ensemble.seeds)
    ]


def _measure_layer(study, ensemble):
    images, _ = study.attacked()
    return ensemble.each(_layer, images[:SPECTRUM_IMAGES])


def _measure_loss(study, ensemble):
    images, labels = study.attacked()
    return ensemble.each(_loss, images[:LOSS_IMAGES], labels[:LOSS_IMAGES])


def _measure_stealth(study, ensemble):
    images, _ = study.attacked()
    known = pixels(study.dataset.train_images[:STATISTICS_IMAGES])
    return ensemble.each(_stealth, images, known)


MEASURED = {
    "layer": _measure_layer,
    "loss": _measure_loss,
    "stealth": _measure_stealth,
}


def _layer(model: "UCN", seed: "Array", images: "Array") -> dict[str, "Array"]:
    """lam against its bounds, and the spectrum of K_inf = dz/dy (Eq. 32).

    Of the first layer.
    """
    import jax.numpy as jnp

    import ibnn_jax
    from ibnn_jax import robustness

    layer = model.blocks[0].implicit
    lam, p = layer.lam[...], layer.p
    z = layer(model.blocks[0].conv(images))
    spectrum = robustness.gain_spectrum(z, lam, p, layer.coupling)
    return {
        "lam": lam,
        "bound": ibnn_jax.uniqueness_bound(p, layer.coupling),
        "bound_paper": 1 / (2 * p),
        "norm": jnp.abs(spectrum).max(),
        "least": spectrum.min(),
    }


def _loss(
    model: "UCN", seed: "Array", images: "Array", labels: "Array"
) -> dict[str, "Array"]:
    """Input Jacobian of the logits, and curvature of the loss, against the twin's.

    The twin is the standard network of the same weights.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from ibnn_jax import robustness
    from train.experiments.harness import attacking

    twin = attacking.standard(model)
    key = jax.random.fold_in(jax.random.key(4), seed)

    def curvature(network):
        def loss(x):
            logits = network(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

        return robustness.input_curvature(loss, images, key, probes=PROBES).mean()

    norms = robustness.input_jacobian_norm(model, images)
    ratio = norms / robustness.input_jacobian_norm(twin, images)
    layer = model.blocks[0].implicit
    lam, p = layer.lam[...], layer.p
    return {
        "jacobian": jnp.median(ratio),
        "contracted": (ratio <= 1 + 1e-3).mean(),
        "curvature": curvature(model) / curvature(twin),
        "predicted": robustness.predicted_curvature_ratio(lam, p),
    }


def _stealth(
    model: "UCN", seed: "Array", images: "Array", known: "Array"
) -> dict[str, "Array"]:
    """A neuron is added to the first layer (Eqs. 44-46), by two attackers.

    How often its trigger gets the attacker's class, and the shares of other images on
    which it shows, and whose class it changes.
    """
    import jax

    from ibnn_jax import attacks

    triggers = known[:TRIGGERS]
    attackers = {
        "paper": attacks.stealth_neurons(triggers),
        "informed": attacks.informed_stealth_neurons(triggers, known),
    }
    found = {}
    for name, neurons in attackers.items():
        attack = jax.lax.map(
            lambda pair: attacks.stealth(model, pair[0], pair[1], images),
            (neurons, triggers),
        )
        found |= {
            f"{name}_hit": attack.hit.mean(),
            f"{name}_seen": attack.seen.mean(),
            f"{name}_changed": attack.changed.mean(),
        }
    return found


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    layer, loss, stealth = figure.subplots(1, 3)
    rows = _with_exact_ratio(rows)
    _panel(layer, rows, "layer", {"norm": "o"}, "norm of dz/dy (Eq. 32)")
    _panel(
        loss,
        rows,
        "loss",
        {"curvature": "o", "predicted": "_", "exact": "x"},
        "curvature of the loss over the SM's\n(bar: Eq. 62, cross: 1 / (1 - lam p)^2)",
    )
    _panel(
        stealth,
        rows,
        "stealth",
        {"paper_seen": "o", "informed_seen": "_"},
        "other images the stealth attack shows on, %\n(bar: informed)",
        scale=100,
    )
    loss.set_yscale("symlog", linthresh=0.01)
    loss.set_ylim(bottom=-0.002)  # Eq. (62) is 0 at lam = -1 / p
    for axis in (layer, loss):
        axis.axhline(1, color="gray", linewidth=0.8)


def _panel(
    axis: Axes,
    rows: Sequence[Row],
    part: str,
    markers: dict[str, str],
    title: str,
    scale: float = 1,
) -> None:
    """A mark for every seed of every variant, in the marker of its column."""
    variants = unique(rows, "variant")
    for place, variant in enumerate(variants):
        mine = pick(rows, variant=variant, part=part)
        for name, marker in markers.items():
            values = scale * column(mine, name)
            size = 14 if marker == "_" else 5
            line = {"color": style.colour(variant), "markersize": size}
            axis.plot([place] * len(values), values, marker, **line)
    axis.set_title(title, fontsize=9)
    names = [variant.replace(" ", "\n") for variant in variants]
    axis.set_xticks(range(len(names)), names, fontsize=8)


def _with_exact_ratio(rows: Sequence[Row]) -> list[Row]:
    """The rows, and in those of the loss "exact": 1 / (1 - lam p)^2 of their network.

    lam and p = 1 / (2 bound_paper) stand in the rows of the layer, in old files too.
    """
    ratio = {}
    for row in pick(rows, part="layer"):
        p = 1 / (2 * row["bound_paper"])
        ratio[row["variant"], row["seed"]] = 1 / (1 - row["lam"] * p) ** 2
    return [
        row | {"exact": ratio.get((row["variant"], row["seed"]), np.nan)}
        if row["part"] == "loss"
        else row
        for row in rows
    ]


def verdict(rows: Sequence[Row]) -> str:
    rows = _with_exact_ratio(rows)
    parts = []
    for variant in unique(rows, "variant"):
        mine = pick(rows, variant=variant)
        if any(row["finite"] == 0 for row in mine):
            continue
        texts = [_stealth_text(mine)]
        if variant != "sm":
            texts = [_layer_text(mine), _loss_text(mine), *texts]
        parts.append(f"{style.name(variant)}: {', '.join(texts)}")
    return ". ".join(parts) + "." + style.diverged(rows)


def _median(rows: Sequence[Row], part: str, name: str) -> float:
    return float(np.nanmedian(column(pick(rows, part=part), name)))


def _layer_text(rows: Sequence[Row]) -> str:
    lam, bound, paper, norm = (
        _median(rows, "layer", name) for name in ("lam", "bound", "bound_paper", "norm")
    )
    return (
        f"lam {lam:.3g} (unique below {bound:.3g}, by the paper's proof {paper:.3g}), "
        f"norm of dz/dy {norm:.3f}"
    )


def _loss_text(rows: Sequence[Row]) -> str:
    jacobian, contracted, curvature, predicted, exact = (
        _median(rows, "loss", name)
        for name in ("jacobian", "contracted", "curvature", "predicted", "exact")
    )
    return (
        f"Jacobian {jacobian:.2f} of the SM's and no larger on "
        f"{style.percent(contracted)} of the images, curvature {curvature:.3g} of the "
        f"SM's (Eq. 62, (1 + lam p)^2: {predicted:.3g}; at a flat input "
        f"1 / (1 - lam p)^2: {exact:.3g})"
    )


def _stealth_text(rows: Sequence[Row]) -> str:
    paper_hit, paper_seen, informed_hit, informed_seen = (
        style.percent(_median(rows, "stealth", name))
        for name in ("paper_hit", "paper_seen", "informed_hit", "informed_seen")
    )
    return (
        f"stealth: the paper's attacker hits {paper_hit} of the triggers and shows on "
        f"{paper_seen} of the other images, an informed one {informed_hit} and "
        f"{informed_seen}"
    )
