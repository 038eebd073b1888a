"""How figures and verdicts name things: one colour and one phrase for every variant. Without JAX."""

import numpy as np

from train.experiments import results

COLOURS = {"sm": "#3b6fb6", "trained": "#d1495b", "free": "#8d6a9f", "fixed": "#66a182"}
NAMES = {
    "sm": "SM",
    "trained": "IBNN, lam trained in bounds",
    "free": "IBNN, lam free",
    "fixed": "IBNN, lam fixed at",
}


def colour(variant):
    return COLOURS[variant.split()[0]]


def name(variant):
    kind, *lam = variant.split()
    return " ".join([NAMES[kind], *lam])


def band(axis, rows, x, y, variant, coverage=0.9, scale=1.0, **line):
    """The median of y over x and its interval, in the colour of the variant; returns the median curve, x and y."""
    xs, middle, low, high = results.curve(rows, x, y, coverage)
    axis.plot(
        xs,
        scale * middle,
        **{
            "color": colour(variant),
            "label": name(variant),
            "marker": ".",
            "linewidth": 1.4,
        }
        | line,
    )
    axis.fill_between(
        xs, scale * low, scale * high, color=colour(variant), alpha=0.15, linewidth=0
    )
    return xs, middle


def percent(value):
    return "-" if value is None or not np.isfinite(value) else f"{100 * value:.1f}%"


def diverged(rows):
    """A sentence on the variants whose training ended with a loss that was not finite; nothing if there are none."""
    found = [
        name(v)
        for v in results.unique(rows, "variant")
        if any(row.get("finite") == 0 for row in results.pick(rows, variant=v))
    ]
    return f" The loss did not stay finite for: {'; '.join(found)}." if found else ""


def epochs(rows):
    """A sentence on the epochs of the attacked networks, on which robustness depends; nothing for files that do not say."""

    def of(variant):
        found = {
            row["seed"]: row["epoch"]
            for row in results.pick(rows, variant=variant)
            if row.get("epoch", np.nan) > 0
        }
        return ", ".join(f"{found[seed]:g}" for seed in sorted(found))

    parts = [
        f"{name(v)} {known}"
        for v in results.unique(rows, "variant")
        if (known := of(v))
    ]
    return (
        f" Attacked are the networks of each seed's lowest test loss, of epochs {'; '.join(parts)}."
        if parts
        else ""
    )
