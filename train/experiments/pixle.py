"""Fig. 5: accuracy under Pixle, which rearranges pixels and sees only the network's probabilities."""

import numpy as np

from train.experiments import results, style

TITLE = "Accuracy under Pixle, 10 restarts x 5 iterations, 3 x 3 patches (Fig. 5)"
PAPER = "IBNN keeps more accuracy than the SM on every data set."


def points(study):
    return [{"variant": v} for v in study.variants()]


def measure(study, point):
    ensemble = study.ensemble(point["variant"])
    if ensemble is None:
        return [{"seed": s, "clean": np.nan, "accuracy": np.nan, "finite": 0} for s in range(study.options.seeds)]
    images, labels = study.attacked()
    clean, fooled = (np.asarray(x) for x in ensemble.each(_attack, images, labels))
    return [{"seed": s, "clean": round(float(c), 6), "accuracy": round(float(a), 6), "images": len(labels), "finite": 1}
            for s, (c, a) in enumerate(zip(clean.mean(1), 1 - fooled.mean(1)))]


def _attack(model, seed, images, labels):
    """Which clean images this network gets right, and which fool it after the attack."""
    import jax

    from ibnn_jax.attacks import pixle
    from train.experiments import attacking

    def batch(images, labels, keys):
        found = pixle(model, images, labels, keys[0], restarts=10, iterations=5, patch=(3, 3), mapping="similarity")
        return model(images).argmax(-1) == labels, found.fooled

    keys = jax.random.split(jax.random.fold_in(jax.random.key(2), seed), len(labels))
    return attacking.in_batches(batch, images, labels, keys)


def draw(figure, rows):
    axis = figure.subplots()
    for place, variant in enumerate(results.unique(rows, "variant")):
        mine = results.pick(rows, variant=variant)
        clean, kept = (100 * results.column(mine, name) for name in ("clean", "accuracy"))
        axis.bar(place, np.median(clean), color=style.colour(variant), alpha=0.3)
        axis.bar(place, np.median(kept), color=style.colour(variant))
        for values in (clean, kept):
            axis.plot([place, place], [values.min(), values.max()], color="black", linewidth=1.2)
    names = [style.name(v).replace(", ", ",\n") for v in results.unique(rows, "variant")]
    axis.set_xticks(range(len(names)), names, fontsize=8)
    axis.set_ylabel("accuracy, %: clean (pale) and attacked")


def verdict(rows):
    def medians(variant):
        mine = results.pick(rows, variant=variant)
        return np.median(results.column(mine, "clean")), np.median(results.column(mine, "accuracy"))

    parts = []
    for variant in results.unique(rows, "variant"):
        clean, kept = medians(variant)
        parts.append(f"{style.name(variant)} falls from {style.percent(clean)} to {style.percent(kept)}")
    better = [style.name(v) for v in results.unique(rows, "variant")[1:] if medians(v)[1] > medians("sm")[1]]
    return "; ".join(parts) + f". More than the SM keep: {', '.join(better) or 'none'}." + style.diverged(rows)
