"""Fig. 8: what wrong labels do."""

import numpy as np

from train.experiments import results, style

TITLE = "Best test accuracy against the share of wrong training labels (Fig. 8)"
PAPER = "the advantage of IBNN's best accuracy over the SM's is larger with wrong labels than without."
SIZE = (7, 6)


def points(study):
    shares = (0.0, 0.4) if study.options.quick else (0.0, 0.25, 0.5)
    return [{"variant": v, "wrong": s} for v in study.variants() for s in shares]


def measure(study, point):
    return study.outcomes(point["variant"], label_noise=point["wrong"])


def draw(figure, rows):
    top, bottom = figure.subplots(2, 1, sharex=True)
    for variant in results.unique(rows, "variant"):
        style.band(
            top,
            results.pick(rows, variant=variant),
            "wrong",
            "best",
            variant,
            scale=100,
        )
    for variant, (shares, difference) in _advantage(rows).items():
        bottom.plot(shares, 100 * difference, marker=".", color=style.colour(variant))
    bottom.axhline(0, color="gray", linewidth=0.8)
    top.set(ylabel="best test accuracy, %")
    bottom.set(xlabel="share of wrong labels", ylabel="IBNN - SM, points")
    top.legend(fontsize=8)


def _advantage(rows):
    """Variant -> shares, median accuracy minus the SM's."""
    middle = {
        v: results.curve(results.pick(rows, variant=v), "wrong", "best")[:2]
        for v in results.unique(rows, "variant")
    }
    return {v: (x, y - middle["sm"][1]) for v, (x, y) in middle.items() if v != "sm"}


def verdict(rows):
    parts = []
    for variant, (shares, difference) in _advantage(rows).items():
        grows = np.all(difference[1:] > difference[0])
        text = ", ".join(
            f"{100 * d:+.2f} at {style.percent(s)}" for s, d in zip(shares, difference)
        )
        word = "larger" if grows else "not larger"
        parts.append(
            f"{style.name(variant)} minus SM, points: {text} ({word} at every share of wrong labels)"
        )
    return "; ".join(parts) + "." + style.diverged(rows)
