"""The supplementary weight transfer: implicit bias switched on in a trained standard network, without training."""

import numpy as np

from train.experiments import results, style

TITLE = "lam swept in a trained SM network (Supplementary Information)"
PAPER = "weights of the SM serve an IBNN: with a margin M, classes stay apart by at least M - 2 |lam| sqrt(D) (Eq. S11)."
EPS = 0.02


def points(study):
    lams = (
        (-0.5, 0.0, 0.05)
        if study.options.quick
        else (-2.0, -1.0, -0.5, -0.2, -0.1, -0.05, -0.02, 0.0, 0.02, 0.05, 0.09)
    )
    return [{"lam": lam} for lam in lams]


def measure(study, point):
    ensemble = study.ensemble("sm")
    if ensemble is None:
        return [
            {"seed": s, "accuracy": np.nan, "finite": 0}
            for s in range(study.options.seeds)
        ]
    images, labels = study.attacked()
    config = study.config("trained")  # one structure for every lam
    shape = (study.dataset.image_shape, study.dataset.classes)
    found = ensemble.each(
        _measure, images, labels, np.float32(point["lam"]), config=config, shape=shape
    )
    accuracy, kept, certified, distance, margin = (np.asarray(x) for x in found)
    return [
        {
            "seed": s,
            "accuracy": round(float(accuracy[s].mean()), 6),
            "pgd": round(float(kept[s].mean()), 6),
            # The share of images that Eq. (S11) promises to leave right, and how much of its |lam| sqrt(D) the layer uses.
            "certified": round(float(certified[s].mean()), 6),
            "distance": round(float(distance[s].max()), 6),
            "margin": round(float(np.median(margin[s])), 6),
            "finite": 1,
        }
        for s in range(len(accuracy))
    ]


def _measure(sm, seed, images, labels, lam, *, config, shape):
    import jax
    import jax.numpy as jnp

    import ibnn_jax
    from ibnn_jax.attacks import pgd
    from train.engine import model
    from train.experiments import attacking

    model = model.build_model(config, *shape, jax.random.key(0), True)
    model.eval()
    ibnn_jax.transfer(sm, model)
    for layer in ibnn_jax.implicit_layers(model):
        layer.lam[...] = lam

    # Of one hidden layer: a logit difference is c . v + const, with c the head's difference behind batch norm's scale.
    block = sm.blocks[0]
    scale = block.norm.scale[...] / jnp.sqrt(block.norm.var[...] + block.norm.epsilon)
    head = (
        sm.head.kernel[...].reshape(-1, len(scale), sm.head.kernel.shape[1])
        * scale[:, None]
    )

    def batch(images, labels, keys):
        y = block.conv(images)
        z = model.blocks[0].implicit(y)
        moved = jnp.linalg.norm(
            (jax.nn.relu(z) - jax.nn.relu(y)).reshape(len(y), -1), axis=1
        )
        allowed = jnp.abs(lam) * jnp.sqrt(y[0].size)
        scores = sm(images)
        others = jnp.arange(shape[1])
        own = jnp.take_along_axis(scores, labels[:, None], 1)
        length = jnp.sqrt(
            ((head[:, :, labels].transpose(2, 0, 1)[..., None] - head[None]) ** 2).sum(
                (1, 2)
            )
        )
        margin = jnp.where(
            others == labels[:, None],
            jnp.inf,
            (own - scores) / jnp.where(length > 0, length, 1),
        ).min(1)
        attacked = pgd(model, images, labels, keys[0], eps=EPS, steps=10)
        right = model(images).argmax(-1) == labels
        return (
            right,
            ~attacked.fooled,
            margin > allowed,
            moved / jnp.maximum(allowed, 1e-9),
            margin,
        )

    keys = jax.random.split(jax.random.fold_in(jax.random.key(3), seed), len(labels))
    return attacking.in_batches(batch, images, labels, keys)


def draw(figure, rows):
    axis = figure.subplots()
    lines = (
        ("accuracy", "clean", "#3b6fb6"),
        ("pgd", f"PGD, eps {EPS}", "#d1495b"),
        ("certified", "promised by Eq. (S11)", "#66a182"),
    )
    for name, text, colour in lines:
        style.band(axis, rows, "lam", name, "sm", scale=100, color=colour, label=text)
    axis.set_xscale("symlog", linthresh=0.02)
    axis.axvline(0, color="gray", linewidth=0.8)
    axis.set(xlabel="lam given to the trained SM network", ylabel="accuracy, %")
    axis.legend(fontsize=8)


def verdict(rows):
    lams, accuracy, *_ = results.curve(rows, "lam", "accuracy")
    kept, certified = (
        results.curve(rows, "lam", name)[1] for name in ("pgd", "certified")
    )
    zero = int(np.flatnonzero(lams == 0)[0])
    best = int(np.nanargmax(kept))
    near = [lam for lam, a in zip(lams, accuracy) if a >= accuracy[zero] - 0.01]
    below = max(zero - 1, 0)
    distance = np.nanmax(
        results.column([row for row in rows if row["lam"] != 0], "distance")
    )
    return (
        f"The SM has {style.percent(accuracy[zero])}, and {style.percent(kept[zero])} under white-box PGD. Accuracy stays within one "
        f"point for lam in [{min(near):g}, {max(near):g}]; PGD accuracy is best at lam {lams[best]:g}: {style.percent(kept[best])}. "
        f"The bound of Eq. (S11) promises {style.percent(certified[below])} at lam {lams[below]:g}; the layer moves by at most "
        f"{style.percent(distance)} of what it allows."
    )
