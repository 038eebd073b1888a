"""NEMON on images: accuracy, Lipschitz bounds, attacks, noise and certificates.

For several weights of the regulariser, and for training on intervals; beside MON, the
norm condition and an explicit network of equal parameters.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.experiments.harness import style
from train.experiments.harness.results import Point, Row, column, pick, rounded, unique
from train.experiments.harness.statistics import paired_difference
from train.experiments.harness.study import Study, pixels

if TYPE_CHECKING:
    from flax import nnx
    from jax import Array

    from ibnn_jax import EquilibriumClassifier

TITLE = "Robustness of implicit layers (NEMON)"
PAPER = (
    "implicit models with smaller input-output Lipschitz bounds are more accurate and "
    "more robust (abstract of arXiv 2106.03194; its figures are not compared here)."
)
SIZE = (12, 4)
NEURONS = 100
STRENGTHS = (0.01, 0.02, 0.05, 0.1)  # radius in the infinity norm, of pixels in [0, 1]
TRAINED_EPS = 0.1  # of training on intervals
STEPS = 20  # of PGD


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to train: the layer, the regulariser's weight, and the interval's radius.

    name: in figures and verdicts.
    """

    name: str
    layer: str = "nemon"
    weight: float = 0.0
    eps: float = 0.0


KINDS = {
    "explicit": Kind("explicit, 784-100-100-10", layer="explicit"),
    "nemon": Kind("NEMON"),
    "nemon 1e-4": Kind("NEMON, weight 1e-4", weight=1e-4),
    "nemon 1e-3": Kind("NEMON, weight 1e-3", weight=1e-3),
    "nemon 1e-2": Kind("NEMON, weight 1e-2", weight=1e-2),
    "nemon interval": Kind("NEMON on intervals", eps=TRAINED_EPS),
    "explicit interval": Kind("explicit on intervals", "explicit", eps=TRAINED_EPS),
    "norm": Kind("|A|_inf <= 0.95", layer="norm"),
    "mon": Kind("MON", layer="mon"),
}
QUICK_KINDS = ("explicit", "nemon", "nemon interval")
COLOURS = {
    "explicit": "#3b6fb6",
    "norm": "#66a182",
    "mon": "#8d6a9f",
    "nemon": "#d1495b",
    "nemon 1e-4": "#e07b39",
    "nemon 1e-3": "#edae49",
    "nemon 1e-2": "#b8860b",
    "nemon interval": "#7a1022",
    "explicit interval": "#12315c",
}


def points(study: Study) -> list[Point]:
    return [{"variant": v} for v in (QUICK_KINDS if study.options.quick else KINDS)]


def measure(study: Study, point: Point) -> list[Row]:
    """A row per seed and strength; clean accuracy and the bounds stand in each.

    finite: 0 for a seed whose weights are not finite; its numbers are NaN.
    """
    import jax.numpy as jnp

    from train.experiments.harness.dense import fit

    kind, data = KINDS[point["variant"]], study.dataset
    ensemble = fit(
        functools.partial(_build, kind.layer, data.image_shape, data.classes),
        functools.partial(_loss, kind),
        jnp.asarray(pixels(data.train_images)),
        jnp.asarray(data.train_labels),
        seeds=study.options.seeds,
        epochs=study.options.epochs,
        on_epoch=study.stop_if_asked,
    )
    images, labels = study.attacked()
    clean = _numpy(ensemble.each(_clean, pixels(data.test_images), data.test_labels))
    rows = []
    for eps in STRENGTHS:
        found = _numpy(ensemble.each(_robust, images, labels, eps))
        rows += [
            {"seed": seed, "eps": eps}
            | _of_seed(clean | found, seed)
            | {"images": len(labels)}
            for seed in range(ensemble.seeds)
        ]
    return rows


def _of_seed(found: dict[str, np.ndarray], seed: int) -> Row:
    finite = bool(found["finite"][seed])
    shares = {
        name: values[seed] if finite else np.nan for name, values in found.items()
    }
    return rounded(**shares) | {"finite": int(finite)}


def _numpy(found: dict[str, "Array"]) -> dict[str, np.ndarray]:
    return {name: np.asarray(values) for name, values in found.items()}


def _build(
    layer: str, image_shape: tuple[int, ...], classes: int, rngs: "nnx.Rngs"
) -> "EquilibriumClassifier":
    import ibnn_jax
    from train.experiments.harness.dense import Explicit

    chosen = {
        "nemon": ibnn_jax.NEMON,
        "norm": ibnn_jax.NormBounded,
        # The same solver for all: Peaceman-Rachford takes far longer on a CPU.
        "mon": functools.partial(ibnn_jax.MON, solver="auto"),
        "explicit": Explicit,
    }[layer]
    return ibnn_jax.EquilibriumClassifier(
        image_shape, classes, features=NEURONS, layer=chosen, rngs=rngs
    )


def _loss(
    kind: Kind,
    model: "EquilibriumClassifier",
    images: "Array",
    labels: "Array",
    progress: "Array",
) -> "Array":
    """Cross-entropy, plus the regulariser; or half of it on the worst logits in a box.

    The radius grows from 0 to eps between a tenth and six tenths of the training, and
    the share of the worst logits from 0 to a half (Gowal et al., arXiv 1810.12715).
    """
    import jax.numpy as jnp
    import optax

    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    loss = cross_entropy(model(images), labels).mean()
    if kind.weight:
        loss += kind.weight * model.regulariser()
    if kind.eps:
        ramp = jnp.clip((progress - 0.1) / 0.5, 0, 1)
        worst_logits = -model.margins(images, labels, ramp * kind.eps)
        worst = cross_entropy(worst_logits, labels).mean()
        loss = (1 - ramp / 2) * loss + ramp / 2 * worst
    return loss


def _clean(
    model: "EquilibriumClassifier", seed: "Array", x: "Array", labels: "Array"
) -> dict[str, "Array"]:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from train.experiments.harness import attacking

    right = attacking.in_batches(
        lambda x, labels: model(x).argmax(-1) == labels, x, labels, size=500
    )
    norms, componentwise = model.lipschitz()
    sums = [leaf.sum() for leaf in jax.tree.leaves(nnx.state(model))]
    return {
        "clean": right.mean(),
        "lipschitz": norms,
        "componentwise": componentwise,
        "finite": jnp.isfinite(jnp.stack(sums)).all(),
    }


def _robust(
    model: "EquilibriumClassifier",
    seed: "Array",
    x: "Array",
    labels: "Array",
    eps: "Array",
) -> dict[str, "Array"]:
    """Accuracy under PGD and uniform noise, and the certified shares of the images.

    certified: no other class can win within the interval. by_lipschitz: the margin is
    more than twice eps times the componentwise bound.
    """
    import jax

    from ibnn_jax.attacks import pgd
    from train.experiments.harness import attacking

    _, bound = model.lipschitz()

    def batch(x, labels, keys):
        key = jax.random.fold_in(keys[0], 1)
        noise = jax.random.uniform(key, x.shape, x.dtype, -1, 1)
        noisy = (x + eps * noise).clip(0, 1)
        attack = pgd(model, x, labels, keys[0], eps=eps, steps=STEPS)
        return {
            "pgd": ~attack.fooled,
            "noise": model(noisy).argmax(-1) == labels,
            "certified": model.certified(x, labels, eps),
            "by_lipschitz": _margin(model(x), labels) > 2 * eps * bound,
        }

    keys = jax.random.split(jax.random.fold_in(jax.random.key(6), seed), len(labels))
    found = attacking.in_batches(batch, x, labels, keys)
    return {name: share.mean() for name, share in found.items()}


def _margin(logits: "Array", labels: "Array") -> "Array":
    """The label's logit minus the largest other one."""
    import jax.numpy as jnp

    is_own = jnp.arange(logits.shape[1]) == labels[:, None]
    others = jnp.where(is_own, -jnp.inf, logits).max(1)
    return jnp.take_along_axis(logits, labels[:, None], 1)[:, 0] - others


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    attacked, certified, front = figure.subplots(1, 3)
    for variant in unique(rows, "variant"):
        mine = pick(rows, variant=variant)
        line = {"color": COLOURS[variant], "label": KINDS[variant].name}
        for axis, name in ((attacked, "pgd"), (certified, "certified")):
            style.band(axis, mine, "eps", name, coverage=1, scale=100, **line)
    attacked.set(xlabel="eps", ylabel="accuracy under PGD, %")
    certified.set(xlabel="eps", ylabel="certified by intervals, %")
    _draw_front(front, rows)
    front.legend(fontsize=7)


def _draw_front(axis: Axes, rows: Sequence[Row]) -> None:
    """Clean accuracy against the certified one, a point per seed."""
    eps = _shown(rows)
    for variant in unique(rows, "variant"):
        mine = pick(rows, variant=variant, eps=eps)
        axis.plot(
            100 * column(mine, "certified"),
            100 * column(mine, "clean"),
            "o",
            color=COLOURS[variant],
            label=KINDS[variant].name,
            markersize=4,
        )
    axis.set(xlabel=f"certified at eps {eps:g}, %", ylabel="clean accuracy, %")


def _shown(rows: Sequence[Row]) -> float:
    """The strength at which networks trained without intervals are compared."""
    return sorted(unique(rows, "eps"))[1]


def verdict(rows: Sequence[Row]) -> str:
    small, large = _shown(rows), max(unique(rows, "eps"))
    explicit = pick(rows, variant="explicit", eps=small)
    parts, differences = [], []
    for variant in unique(rows, "variant"):
        mine = pick(rows, variant=variant)
        text = f"{KINDS[variant].name}: clean {style.percent(_median(mine, 'clean'))}"
        if variant != "explicit":
            chosen = pick(mine, eps=small)
            differences.append(paired_difference(chosen, explicit, "clean"))
            text += f" (minus explicit, points: {style.points(differences[-1])})"
        parts.append(text + _robustness(mine, (small, large)))
    text = f"At eps {small:g} / {large:g}, medians. {'. '.join(parts)}."
    return text + style.paired(differences)


def _robustness(rows: Sequence[Row], strengths: Sequence[float]) -> str:
    """Bounds, and accuracies at these strengths, of one variant."""
    bounds = [f"{_median(rows, n):.3g}" for n in ("lipschitz", "componentwise")]
    text = f", Lipschitz bounds {' and '.join(bounds)}"
    words = {"pgd": "PGD", "noise": "noise", "certified": "certified"}
    for name, word in words.items():
        shares = [_median(pick(rows, eps=eps), name) for eps in strengths]
        text += f", {word} {' / '.join(map(style.percent, shares))}"
    lost = len(pick(rows, eps=strengths[0], finite=0))
    if lost:
        text += f", weights not finite in {lost} seeds, which are left out"
    return text


def _median(rows: Sequence[Row], name: str) -> float:
    return float(np.nanmedian(column(rows, name)))
