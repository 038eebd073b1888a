"""Fig. 6: what a network of a given number of parameters can do."""

from train.experiments import results, style

TITLE = "Best test accuracy against the number of parameters (Fig. 6)"
PAPER = (
    "IBNN does better than the SM with the same number of parameters, at every size."
)


def points(study):
    channels = (1, 2) if study.options.quick else (1, 2, 3, 5)
    return [{"variant": v, "channels": c} for v in study.variants() for c in channels]


def measure(study, point):
    rows = study.outcomes(point["variant"], channels=point["channels"])
    # The one lam per layer is left out, so that a network and its twin stand above each other.
    return [
        row | {"parameters": study.parameters("sm", channels=point["channels"])}
        for row in rows
    ]


def draw(figure, rows):
    axis = figure.subplots()
    for variant in results.unique(rows, "variant"):
        style.band(
            axis,
            results.pick(rows, variant=variant),
            "parameters",
            "best",
            variant,
            scale=100,
        )
    axis.set(xlabel="parameters (without lam)", ylabel="best test accuracy, %")
    axis.legend(fontsize=8)


def verdict(rows):
    sizes = results.unique(rows, "parameters")
    middle = {
        v: results.curve(results.pick(rows, variant=v), "parameters", "best")[1]
        for v in results.unique(rows, "variant")
    }
    parts = []
    for variant in list(middle)[1:]:
        difference = middle[variant] - middle["sm"]
        text = ", ".join(f"{100 * d:+.2f}" for d in difference)
        parts.append(
            f"{style.name(variant)} is better than the SM at {(difference > 0).sum()} of {len(sizes)} sizes ({text} points)"
        )
    return "; ".join(parts) + "." + style.diverged(rows)
