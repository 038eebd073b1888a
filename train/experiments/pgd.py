"""Fig. 4: accuracy under projected gradient descent, through the surrogate of the paper and through the network itself."""

import numpy as np

from train.experiments import results, style

TITLE = "Accuracy under PGD, 10 steps, L-inf (Fig. 4)"
PAPER = "IBNN keeps more accuracy than the SM at every strength of an attack made on the SM surrogate; a white-box attack was not possible."
SIZE = (10, 4.5)
# The paper's surrogate; the gradient of the implicit equation; two ways to avoid it; the worst of these per image.
ATTACKS = ("surrogate", "white-box", "phantom", "unrolled", "worst")
UNROLLED_SHARE = (
    50  # pairwise steps cost n^2: this attack gets one image in so many, and one start
)
UNROLLED_STEPS = 4


def points(study):
    strengths = (0.0, 0.03) if study.options.quick else (0.0, 0.01, 0.02, 0.03, 0.05)
    return [{"variant": v, "eps": e} for v in study.variants() for e in strengths]


def measure(study, point):
    ensemble = study.ensemble(point["variant"])
    attacks = ("white-box", "worst") if point["variant"] == "sm" else ATTACKS
    if ensemble is None:
        return [
            {"attack": a, "seed": s, "finite": 0}
            for a in attacks
            for s in range(study.options.seeds)
        ]
    images, labels = study.attacked()
    restarts = 1 if study.options.quick else 2
    rows, worst = [], np.zeros((ensemble.seeds, len(labels)), bool)
    for attack in attacks[:-1]:
        count = (
            max(1, len(labels) // UNROLLED_SHARE)
            if attack == "unrolled"
            else len(labels)
        )
        starts = 1 if attack == "unrolled" else restarts
        fooled, unsolved = ensemble.each(
            _attack,
            images[:count],
            labels[:count],
            point["eps"],
            attack=attack,
            restarts=starts,
        )
        fooled, unsolved = np.asarray(fooled), np.asarray(unsolved)
        worst[:, :count] |= fooled
        rows += _rows(attack, fooled, unsolved.mean(1))
    rows += _rows("worst", worst, np.full(len(worst), np.nan))
    return [row | {"epoch": ensemble.epochs[row["seed"]]} for row in rows]


def _rows(attack, fooled, unsolved):
    return [
        {
            "attack": attack,
            "seed": s,
            "accuracy": round(1 - float(f.mean()), 6),
            "unsolved": round(float(u), 6),
            "images": len(f),
            "finite": 1,
        }
        for s, (f, u) in enumerate(zip(fooled, unsolved))
    ]


def _attack(model, seed, images, labels, eps, *, attack, restarts):
    """Which images fool this network, and which attacked images it could not solve."""
    import jax
    from flax import nnx

    import ibnn_jax
    from ibnn_jax.attacks import pgd
    from train.experiments import attacking

    source = nnx.clone(model)
    if attack == "surrogate":
        source = attacking.standard(source)
    elif attack == "phantom":
        source = attacking.differentiated(source, ibnn_jax.Phantom())
    elif attack == "unrolled":
        source = attacking.differentiated(
            source, ibnn_jax.Unrolled(UNROLLED_STEPS), ibnn_jax.Picard()
        )

    def batch(images, labels, keys):
        found = pgd(
            source,
            images,
            labels,
            keys[0],
            eps=eps,
            steps=10,
            restarts=restarts,
            target=model,
        )
        return found.fooled, attacking.unsolved(model, found.images)

    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), seed), len(labels))
    return attacking.in_batches(batch, images, labels, keys)


def draw(figure, rows):
    left, right = figure.subplots(1, 2, sharey=True)
    panels = (
        (left, "surrogate", "the paper's attack: IBNN through the SM surrogate"),
        (right, "worst", "the worst attack per image"),
    )
    for axis, attack, title in panels:
        for variant in results.unique(rows, "variant"):
            mine = results.pick(
                rows, variant=variant, attack="white-box" if variant == "sm" else attack
            )
            style.band(axis, mine, "eps", "accuracy", variant, coverage=1, scale=100)
        axis.set_title(title, fontsize=9)
        axis.set(xlabel="eps")
    left.set_ylabel("accuracy, %")
    left.legend(fontsize=8)


def verdict(rows):
    strongest = [e for e in results.unique(rows, "eps") if e > 0]
    sm = {e: _median(rows, "sm", "white-box", e) for e in strongest}
    at = max(
        strongest, key=lambda e: -abs(sm[e] - 0.5)
    )  # where the SM is about half right, differences show best
    parts = [f"At eps {at:g} the SM keeps {style.percent(sm[at])}"]
    for variant in results.unique(rows, "variant")[1:]:
        few = results.pick(rows, variant=variant, attack="unrolled")[0].get(
            "images", np.nan
        )
        names = {
            a: f"{a}, on {few:g} images only" if a == "unrolled" else a for a in ATTACKS
        }
        kept = ", ".join(
            f"{style.percent(_median(rows, variant, a, at))} ({names[a]})"
            for a in ATTACKS
        )
        wins = [
            sum(_median(rows, variant, a, e) > sm[e] for e in strongest)
            for a in ("surrogate", "worst")
        ]
        share = np.nanmax(
            results.column(results.pick(rows, variant=variant), "unsolved")
        )
        parts.append(
            f"{style.name(variant)} keeps {kept}: more than the SM at {wins[0]} of {len(strongest)} strengths under the paper's "
            f"attack, at {wins[1]} under the worst; attacked images with an unsolved group: at most {style.percent(share)}"
        )
    return ". ".join(parts) + "." + style.epochs(rows) + style.diverged(rows)


def _median(rows, variant, attack, eps):
    return float(
        np.median(
            results.column(
                results.pick(rows, variant=variant, attack=attack, eps=eps), "accuracy"
            )
        )
    )
