"""Fig. 3: how much training data a network needs."""

from train.experiments import results, style

TITLE = "Best test accuracy against the share of training data (Fig. 3)"
PAPER = "IBNN needs 29-82% of the data for the SM's best accuracy."


def points(study):
    fractions = (1.0, 0.3) if study.options.quick else (1.0, 0.6, 0.3, 0.1)
    return [{"variant": v, "fraction": f} for v in study.variants() for f in fractions]


def measure(study, point):
    return study.outcomes(
        point["variant"],
        train_fraction=study.options.train_fraction * point["fraction"],
    )


def draw(figure, rows):
    axis = figure.subplots()
    for variant in results.unique(rows, "variant"):
        style.band(
            axis,
            results.pick(rows, variant=variant),
            "fraction",
            "best",
            variant,
            scale=100,
        )
    best = _sm_best(rows)
    axis.axhline(
        100 * best, linestyle="--", color="#e377a2", linewidth=1, label="SM's best"
    )
    for variant, share in _needed(rows).items():
        if share is not None:
            axis.axvline(share, linestyle=":", color=style.colour(variant), linewidth=1)
    axis.set(xlabel="share of the training data", ylabel="best test accuracy, %")
    axis.legend(fontsize=8)


def _sm_best(rows):
    """The best of the SM's median curve, which in a short training need not be at its end."""
    return results.curve(results.pick(rows, variant="sm"), "fraction", "best")[1].max()


def _needed(rows):
    """Variant -> the share of the data with which its median reaches the SM's best; None where it never does."""
    shares = {}
    for variant in results.unique(rows, "variant")[1:]:
        x, middle, *_ = results.curve(
            results.pick(rows, variant=variant), "fraction", "best"
        )
        shares[variant] = results.crossing(x, middle, _sm_best(rows))
    return shares


def verdict(rows):
    parts = [f"The SM's best median is {style.percent(_sm_best(rows))}"]
    for variant, share in _needed(rows).items():
        needs = (
            "never reaches that"
            if share is None
            else f"reaches that with {style.percent(share)} of the data"
        )
        parts.append(f"{style.name(variant)} {needs}")
    return "; ".join(parts) + "." + style.diverged(rows)
