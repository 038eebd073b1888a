"""Fig. 5: accuracy under Pixle, which rearranges pixels and sees only the network's probabilities."""

import numpy as np

from train.experiments import results, style

TITLE = "Accuracy under Pixle, 10 restarts x 5 iterations, 3 x 3 patches (Fig. 5)"
PAPER = "IBNN keeps more accuracy than the SM on every data set."
SIZE = (10, 4.5)


# The authors' program writes to the transposed place (see `ibnn_jax.attacks.pixle`); the others show what that does.
MAPPINGS = {
    "similarity_transposed": "by similarity, as in the authors' program",
    "similarity": "by similarity",
    "random": "at random",
}


def points(study):
    return [{"variant": v, "mapping": m} for v in study.variants() for m in MAPPINGS]


def measure(study, point):
    ensemble = study.ensemble(point["variant"])
    if ensemble is None:
        return [{"seed": s, "finite": 0} for s in range(study.options.seeds)]
    images, labels = study.attacked()
    clean, fooled = (
        np.asarray(x)
        for x in ensemble.each(_attack, images, labels, mapping=point["mapping"])
    )
    return [
        {
            "seed": s,
            "clean": round(float(c), 6),
            "accuracy": round(float(a), 6),
            "images": len(labels),
            "epoch": e,
            "finite": 1,
        }
        for s, (c, a, e) in enumerate(
            zip(clean.mean(1), 1 - fooled.mean(1), ensemble.epochs)
        )
    ]


def _attack(model, seed, images, labels, *, mapping):
    """Which clean images this network gets right, and which fool it after the attack."""
    import jax

    from ibnn_jax.attacks import pixle
    from train.experiments import attacking

    def batch(images, labels, keys):
        found = pixle(
            model,
            images,
            labels,
            keys[0],
            restarts=10,
            iterations=5,
            patch=(3, 3),
            mapping=mapping,
        )
        return model(images).argmax(-1) == labels, found.fooled

    keys = jax.random.split(jax.random.fold_in(jax.random.key(2), seed), len(labels))
    return attacking.in_batches(batch, images, labels, keys)


def draw(figure, rows):
    for axis, mapping in zip(figure.subplots(1, len(MAPPINGS), sharey=True), MAPPINGS):
        for place, variant in enumerate(results.unique(rows, "variant")):
            mine = results.pick(rows, variant=variant, mapping=mapping)
            clean, kept = (
                100 * results.column(mine, name) for name in ("clean", "accuracy")
            )
            axis.bar(place, np.median(clean), color=style.colour(variant), alpha=0.3)
            axis.bar(place, np.median(kept), color=style.colour(variant))
            for values in (clean, kept):
                axis.plot(
                    [place, place],
                    [values.min(), values.max()],
                    color="black",
                    linewidth=1.2,
                )
        axis.set_title(f"pixels copied {MAPPINGS[mapping]}", fontsize=8)
        axis.set_xticks(
            range(place + 1),
            [v.replace(" ", "\n") for v in results.unique(rows, "variant")],
            fontsize=8,
        )
    figure.axes[0].set_ylabel("accuracy, %: clean (pale) and attacked")


def verdict(rows):
    parts = []
    for mapping, text in MAPPINGS.items():
        chosen = results.pick(rows, mapping=mapping)
        kept = {
            v: np.median(results.column(results.pick(chosen, variant=v), "accuracy"))
            for v in results.unique(rows, "variant")
        }
        numbers = ", ".join(
            f"{style.name(v)} {style.percent(k)}" for v, k in kept.items()
        )
        better = [style.name(v) for v, k in kept.items() if k > kept["sm"]]
        parts.append(
            f"Pixels copied {text}: {numbers}; more than the SM: {' and '.join(better) or 'none'}"
        )
    clean = {
        v: np.median(results.column(results.pick(rows, variant=v), "clean"))
        for v in results.unique(rows, "variant")
    }
    parts.append(
        "Clean: "
        + ", ".join(f"{style.name(v)} {style.percent(c)}" for v, c in clean.items())
    )
    return ". ".join(parts) + "." + style.epochs(rows) + style.diverged(rows)
