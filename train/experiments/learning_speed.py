"""Fig. 7: how many epochs a network needs."""

import numpy as np

from train.experiments import results, style

TITLE = "Accuracy against epoch (Fig. 7), running mean of 3"
PAPER = "IBNN matches the SM's best of 80 epochs in 18-25 epochs, where the SM needs more than 53."


def points(study):
    return [{"variant": v} for v in study.all_variants()]


def measure(study, point):
    history, finite = study.history(point["variant"])
    rows = []
    for i in range(study.options.seeds):
        accuracy = history["test_accuracy"][i] if history else np.array([np.nan])
        smooth = np.convolve(
            np.pad(accuracy, 1, mode="edge"), np.full(3, 1 / 3), mode="valid"
        )
        for epoch in range(len(accuracy)):
            lam = history["lam"][i, epoch].mean() if "lam" in history else 0.0
            values = {"accuracy": accuracy[epoch], "smooth": smooth[epoch], "lam": lam}
            rows.append(
                {"seed": i, "epoch": epoch + 1}
                | {k: round(float(v), 6) for k, v in values.items()}
                | {"finite": int(finite)}
            )
    return rows


def draw(figure, rows):
    axis, lam_axis = figure.subplots(1, 2, width_ratios=(2, 1))
    for variant in results.unique(rows, "variant"):
        mine = results.pick(rows, variant=variant)
        line = {"linestyle": _dash(rows, variant), "label": style.name(variant)}
        style.band(axis, mine, "epoch", "smooth", variant, scale=100, **line)
        if variant != "sm":
            style.band(lam_axis, mine, "epoch", "lam", variant, **line)
    best, epoch = _best(results.pick(rows, variant="sm"))
    axis.plot(
        [1, epoch, epoch],
        [100 * best, 100 * best, axis.get_ylim()[0]],
        "--",
        color="#e377a2",
        linewidth=1,
        label="SM's best",
    )
    # A variant that fails would flatten the others.
    low, high = (
        f(results.column(results.pick(rows, variant="sm"), "smooth"))
        for f in (np.nanmin, np.nanmax)
    )
    axis.set(
        xlabel="epoch",
        ylabel="test accuracy, %",
        ylim=(100 * (low - 2 * (high - low)), None),
    )
    lam_axis.set(xlabel="epoch", title="lam")
    lam_axis.axhline(0.1, color="gray", linewidth=0.8, linestyle=":")
    axis.legend(fontsize=7)


def _dash(rows, variant):
    """Fixed lams share a colour, so each has its own line."""
    fixed = [v for v in results.unique(rows, "variant") if v.startswith("fixed")]
    return ("-", "--", ":", "-.")[fixed.index(variant) % 4] if variant in fixed else "-"


def _best(rows):
    """The best of the median curve, and its epoch."""
    epochs, middle, *_ = results.curve(rows, "epoch", "smooth")
    return middle.max(), epochs[middle.argmax()]


def verdict(rows):
    best, epoch = _best(results.pick(rows, variant="sm"))
    last = max(results.unique(rows, "epoch"))
    parts = [
        f"The SM's best, {style.percent(best)}, comes in epoch {epoch:g} of {last:g}"
    ]
    for variant in results.unique(rows, "variant")[1:]:
        epochs, middle, *_ = results.curve(
            results.pick(rows, variant=variant), "epoch", "smooth"
        )
        reached = np.flatnonzero(middle >= best)
        when = (
            f"reaches it in epoch {epochs[reached[0]]:g}"
            if len(reached)
            else "does not reach it"
        )
        parts.append(
            f"{style.name(variant)} {when} (best {style.percent(np.nanmax(middle))})"
        )
    return "; ".join(parts) + "." + style.diverged(rows)
