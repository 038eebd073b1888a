"""Fig. 4: accuracy under projected gradient descent (PGD).

The attack goes through the paper's surrogate, or through the network itself.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
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
from train.experiments.harness.statistics import Difference, paired_difference
from train.experiments.harness.study import Study

if TYPE_CHECKING:
    from jax import Array

    from ibnn_jax import UCN

TITLE = "Accuracy under PGD, 10 steps, L-inf (Fig. 4)"
PAPER = (
    "IBNN keeps more accuracy than the SM at every strength of an attack made on the "
    "SM surrogate; a white-box attack was not possible."
)
SIZE = (10, 4.5)
# The paper's surrogate; the gradient of the implicit equation; two gradients that avoid
# it; and the worst of all these for each image.
ATTACKS = ("surrogate", "white-box", "phantom", "unrolled", "worst")
SM_ATTACKS = ("white-box", "worst")
STRENGTHS = (0.0, 0.01, 0.02, 0.03, 0.05)
QUICK_STRENGTHS = (0.0, 0.03)
RESTARTS, QUICK_RESTARTS = 2, 1
# The unrolled attack takes pairwise steps, whose cost grows with the square of the
# number of neurons: it gets one image in so many, one restart, and few steps.
UNROLLED_SHARE = 50
UNROLLED_STEPS = 4


def points(study: Study) -> list[Point]:
    strengths = QUICK_STRENGTHS if study.options.quick else STRENGTHS
    return [{"variant": v, "eps": e} for v in study.variants() for e in strengths]


def measure(study: Study, point: Point) -> list[Row]:
    attacks = SM_ATTACKS if point["variant"] == "sm" else ATTACKS
    ensemble = study.ensemble(point["variant"])
    if ensemble is None:
        seeds = study.options.seeds
        return [row for attack in attacks for row in not_finite(seeds, attack=attack)]
    images, labels = study.attacked()
    restarts = QUICK_RESTARTS if study.options.quick else RESTARTS
    rows, worst = [], np.zeros((ensemble.seeds, len(labels)), bool)
    for attack in attacks[:-1]:
        few = attack == "unrolled"
        count = max(1, len(labels) // UNROLLED_SHARE) if few else len(labels)
        fooled, unsolved = ensemble.each(
            _attack,
            images[:count],
            labels[:count],
            point["eps"],
            attack=attack,
            restarts=1 if few else restarts,
        )
        worst[:, :count] |= np.asarray(fooled)
        rows += _rows(attack, np.asarray(fooled), np.asarray(unsolved).mean(1))
    rows += _rows("worst", worst, np.full(len(worst), np.nan))
    return [row | {"epoch": ensemble.epochs[row["seed"]]} for row in rows]


def _rows(attack: str, fooled: np.ndarray, unsolved: np.ndarray) -> list[Row]:
    """fooled: bool [seeds, images]; unsolved: share of the attacked images [seeds]."""
    return [
        {"attack": attack, "seed": seed}
        | rounded(accuracy=1 - images.mean(), unsolved=unsolved[seed])
        | {"images": len(images), "finite": 1}
        for seed, images in enumerate(fooled)
    ]


def _attack(
    model: "UCN",
    seed: "Array",
    images: "Array",
    labels: "Array",
    eps: "Array",
    *,
    attack: str,
    restarts: int,
) -> tuple["Array", "Array"]:
    """Which images fool the network, and which attacked images it could not solve."""
    import jax

    from ibnn_jax.attacks import pgd
    from train.experiments.harness import attacking

    source = _source(model, attack)

    def batch(images, labels, keys):
        result = pgd(
            source,
            images,
            labels,
            keys[0],
            eps=eps,
            steps=10,
            restarts=restarts,
            target=model,
        )
        return result.fooled, attacking.unsolved(model, result.images)

    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), seed), len(labels))
    return attacking.in_batches(batch, images, labels, keys)


def _source(model: "UCN", attack: str) -> "UCN":
    """The network whose gradients an attack follows."""
    import ibnn_jax
    from train.experiments.harness import attacking

    if attack == "surrogate":
        return attacking.standard(model)
    if attack == "phantom":
        return attacking.differentiated(model, ibnn_jax.Phantom())
    if attack == "unrolled":
        adjoint = ibnn_jax.Unrolled(UNROLLED_STEPS)
        return attacking.differentiated(model, adjoint, ibnn_jax.Picard())
    return model


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    panels = (
        (left, "surrogate", "the paper's attack: IBNN through the SM surrogate"),
        (right, "worst", "the worst attack per image"),
    )
    for axis, attack, title in panels:
        for variant in unique(rows, "variant"):
            chosen = "white-box" if variant == "sm" else attack
            mine = pick(rows, variant=variant, attack=chosen)
            style.band(axis, mine, "eps", "accuracy", variant, coverage=1, scale=100)
        axis.set_title(title, fontsize=9)
        axis.set(xlabel="eps")
    left.set_ylabel("accuracy, %")
    left.legend(fontsize=8)


def verdict(rows: Sequence[Row]) -> str:
    strengths = [eps for eps in unique(rows, "eps") if eps > 0]
    sm = {eps: _median(rows, "sm", "white-box", eps) for eps in strengths}
    # Where the SM is right on about half of the images, differences show best.
    at = min(strengths, key=lambda eps: abs(sm[eps] - 0.5))
    parts = [f"At eps {at:g} the SM keeps {style.percent(sm[at])}"]
    every = []
    for variant in unique(rows, "variant")[1:]:
        text, differences = _against_sm(rows, variant, at, sm)
        parts.append(text)
        every += differences
    text = ". ".join(parts) + "." + style.paired(every)
    return text + style.epochs(rows) + style.diverged(rows)


def _against_sm(
    rows: Sequence[Row], variant: str, at: float, sm: dict[float, float]
) -> tuple[str, list[Difference]]:
    """What a variant keeps at one strength, and how often it beats the SM's medians."""
    mine = pick(rows, variant=variant)
    few = pick(mine, attack="unrolled")[0].get("images", np.nan)
    notes = {"unrolled": f", on {few:g} images only"}
    kept = ", ".join(
        f"{style.percent(_median(rows, variant, attack, at))} "
        f"({attack}{notes.get(attack, '')})"
        for attack in ATTACKS
    )
    reference = pick(rows, variant="sm", attack="white-box", eps=at)
    differences = [
        paired_difference(pick(mine, attack=attack, eps=at), reference, "accuracy")
        for attack in ("surrogate", "worst")
    ]
    wins = [
        sum(_median(rows, variant, attack, eps) > sm[eps] for eps in sm)
        for attack in ("surrogate", "worst")
    ]
    unsolved = np.nanmax(column(mine, "unsolved"))
    text = (
        f"{style.name(variant)} keeps {kept}; minus SM, points: "
        f"{style.points(differences[0])} under the paper's attack, "
        f"{style.points(differences[1])} under the worst; by the medians more than "
        f"the SM at {wins[0]} of {len(sm)} strengths under the paper's attack, at "
        f"{wins[1]} under the worst; attacked images with an unsolved group: at most "
        f"{style.percent(unsolved)}"
    )
    return text, differences


def _median(rows: Sequence[Row], variant: str, attack: str, eps: float) -> float:
    chosen = pick(rows, variant=variant, attack=attack, eps=eps)
    if not chosen:
        raise ValueError(f"there is no row of {variant}, {attack}, eps {eps:g}")
    return float(np.median(column(chosen, "accuracy")))
