"""The Methods' theory, on trained networks: uniqueness, the layer's spectrum, Jacobians, curvature of the loss, stealth attacks."""

import numpy as np

from train.experiments import results, style
from train.experiments.study import pixels

TITLE = "Theory on trained networks (Methods)"
PAPER = (
    "for lam < 0 the layer never stretches (Prop. 6), the loss is (1 + lam p)^2 times as curved (Eq. 62), and a single-neuron "
    "stealth attack is unfeasible (Eq. 54); lam is below the uniqueness bound."
)
SIZE = (11, 3.6)
PARTS = ("layer", "loss", "stealth")
TRIGGERS = 5
PROBES = 10


def points(study):
    return [
        {"variant": v, "part": part}
        for v in study.all_variants()
        for part in PARTS
        if v != "sm" or part == "stealth"
    ]


def measure(study, point):
    ensemble = study.ensemble(point["variant"])
    if ensemble is None:
        return [{"seed": s, "finite": 0} for s in range(study.options.seeds)]
    images, labels = study.attacked()
    if point["part"] == "layer":
        found = ensemble.each(_layer, images[:2])
    elif point["part"] == "loss":
        found = ensemble.each(_loss, images[:200], labels[:200])
    else:
        found = ensemble.each(
            _stealth, images, pixels(study.dataset.train_images[:5000])
        )
    return [
        {"seed": s}
        | {k: round(float(v[s]), 6) for k, v in found.items()}
        | {"finite": 1}
        for s in range(ensemble.seeds)
    ]


def _layer(model, seed, images):
    """lam against its bounds, and the spectrum of K_inf = dz/dy (Eq. 32) of the first layer on some images."""
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


def _loss(model, seed, images, labels):
    """Input Jacobians of the logits and curvature of the loss, against the standard twin with the same weights."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from ibnn_jax import robustness
    from train.experiments import attacking

    twin = attacking.standard(nnx.clone(model))

    def norms(network):
        def one(image):
            logits, pull = jax.vjp(lambda x: network(x[None])[0], image)
            return jnp.sqrt(
                (jax.vmap(pull)(jnp.eye(len(logits), dtype=logits.dtype))[0] ** 2).sum()
            )

        return jax.lax.map(one, images, batch_size=20)

    def curvature(network):
        loss = lambda x: optax.softmax_cross_entropy_with_integer_labels(
            network(x), labels
        )
        return robustness.input_curvature(
            loss, images, jax.random.fold_in(jax.random.key(4), seed), probes=PROBES
        ).mean()

    ratio = norms(model) / norms(twin)
    layer = model.blocks[0].implicit
    return {
        "jacobian": jnp.median(ratio),
        "contracted": (ratio <= 1 + 1e-3).mean(),
        "curvature": curvature(model) / curvature(twin),
        "predicted": robustness.predicted_curvature_ratio(layer.lam[...], layer.p),
    }


def _stealth(model, seed, images, train):
    """A neuron is added to the first map of the first layer (Eqs. 44-46), and what it does to trigger and other images.

    Two attackers. Paper's (Eq. 52, b = 0): m along the trigger. Informed (Tyukin et al., with the statistics of the training
    images): m along the whitened trigger, and a threshold at 0.8 of its answer. Both scale m so that the neuron's linear
    response to the trigger is 1, and add c_a z to the logit of the least likely class, with c_a enough to make it the largest.
    """
    import jax
    import jax.numpy as jnp

    import ibnn_jax

    flat = train.reshape(len(train), -1)
    mean = flat.mean(0)
    covariance = (flat - mean).T @ (flat - mean) / len(flat) + 1e-2 * jnp.eye(
        flat.shape[1], dtype=flat.dtype
    )
    block = model.blocks[0]

    def hidden(x, response):
        """Activity of the block with a neuron added whose linear response is `response`, and that neuron's activity."""
        y = block.conv(x)
        extra = response
        z = y
        if block.implicit is not None:
            layer = block.implicit
            lam, p = layer.lam[...], layer.p
            first = jnp.concatenate(
                [y[..., 0].reshape(len(y), -1), response[:, None]], 1
            )
            n = first.shape[1] - 1
            # w stays 1 / D with D + 1 neurons (Eq. 46).
            own = {
                "solver": layer.solver,
                "tol": layer.tol,
                "max_steps": layer.max_steps,
            }
            solved = ibnn_jax.solve(
                first, lam * (n + 1) / n, p, ibnn_jax.Uniform((-1,)), **own
            ).value
            extra = solved[:, -1]
            z = layer(y).at[..., 0].set(solved[:, :-1].reshape(y.shape[:-1]))
        return block.norm(jax.nn.relu(z)), jax.nn.relu(extra)

    def logits(x, response, strength, target):
        v, extra = hidden(x, response)
        for later in model.blocks[1:]:
            v, _ = later(v)
        scores = model.head(v.reshape(len(v), -1))
        return scores.at[:, target].add(strength * extra)

    def attack(trigger, direction, centre, threshold):
        answer = lambda x: (
            (x.reshape(len(x), -1) - centre)
            @ direction
            / ((trigger.reshape(-1) - centre) @ direction)
        )
        respond = lambda x: (answer(x) - threshold) / (1 - threshold)
        clean = model(trigger[None])[0]
        target = clean.argmin()
        needed = clean.max() - clean.min() + 1
        # The attacker knows the network: the strength is set by the activity that the trigger really gets.
        strength = needed / jnp.maximum(
            hidden(trigger[None], respond(trigger[None]))[1][0], 1e-3
        )
        hit = (
            logits(trigger[None], respond(trigger[None]), strength, target)[0].argmax()
            == target
        )
        before = model(images)
        after = logits(images, respond(images), strength, target)
        return (
            hit,
            jnp.abs(after - before).max(1) > 0.01 * needed,
            after.argmax(1) != before.argmax(1),
        )

    def one(trigger):
        x = trigger.reshape(-1)
        paper = attack(trigger, x, jnp.zeros_like(x), 0.0)
        informed = attack(trigger, jnp.linalg.solve(covariance, x - mean), mean, 0.8)
        return paper, informed

    (hit, seen, changed), (hit_i, seen_i, changed_i) = jax.lax.map(
        one, train[:TRIGGERS]
    )
    return {
        "paper_hit": hit.mean(),
        "paper_seen": seen.mean(),
        "paper_changed": changed.mean(),
        "informed_hit": hit_i.mean(),
        "informed_seen": seen_i.mean(),
        "informed_changed": changed_i.mean(),
    }


def draw(figure, rows):
    axes = figure.subplots(1, 3)
    variants = [v for v in results.unique(rows, "variant")]
    panels = (
        ("layer", ("norm",), "norm of dz/dy (Eq. 32)"),
        (
            "loss",
            ("curvature", "predicted"),
            "curvature of the loss over the SM's (bar: Eq. 62)",
        ),
        (
            "stealth",
            ("paper_seen", "informed_seen"),
            "other images the stealth attack shows on, % (bar: informed)",
        ),
    )
    for axis, (part, names, title) in zip(axes, panels):
        for place, variant in enumerate(variants):
            mine = results.pick(rows, variant=variant, part=part)
            for name, marker in zip(names, "o_"):
                values = results.column(mine, name) * (100 if part == "stealth" else 1)
                axis.plot(
                    [place] * len(values),
                    values,
                    marker,
                    color=style.colour(variant),
                    markersize=5 if marker == "o" else 14,
                )
        axis.set_title(title, fontsize=9)
        axis.set_xticks(
            range(len(variants)), [v.replace(" ", "\n") for v in variants], fontsize=8
        )
    axes[0].axhline(1, color="gray", linewidth=0.8)
    axes[1].axhline(1, color="gray", linewidth=0.8)


def verdict(rows):
    parts = []
    for variant in results.unique(rows, "variant"):
        value = lambda part, name: np.nanmedian(
            results.column(results.pick(rows, variant=variant, part=part), name)
        )
        if any(row["finite"] == 0 for row in results.pick(rows, variant=variant)):
            continue
        text = ""
        if variant != "sm":
            text = (
                f"lam {value('layer', 'lam'):.3g} (unique below {value('layer', 'bound'):.3g}, by the paper's proof "
                f"{value('layer', 'bound_paper'):.3g}), norm of dz/dy {value('layer', 'norm'):.3f}, Jacobian "
                f"{value('loss', 'jacobian'):.2f} of the SM's and no larger on "
                f"{style.percent(value('loss', 'contracted'))} of the images, curvature {value('loss', 'curvature'):.2f} "
                f"(predicted {value('loss', 'predicted'):.2f}), "
            )
        text += (
            f"stealth: the paper's attacker hits {style.percent(value('stealth', 'paper_hit'))} of the triggers and shows on "
            f"{style.percent(value('stealth', 'paper_seen'))} of the other images, an informed one "
            f"{style.percent(value('stealth', 'informed_hit'))} and {style.percent(value('stealth', 'informed_seen'))}"
        )
        parts.append(f"{style.name(variant)}: {text}")
    return ". ".join(parts) + "." + style.diverged(rows)
