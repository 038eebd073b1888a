"""NEMON on a function of one and of two variables: error, and convergence.

Beside it the conditions of its rivals: the bound |A|_inf < 1, monotone operator
networks (MON), and an explicit network of equal parameters.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.experiments.harness import style
from train.experiments.harness.results import Point, Row, column, pick, rounded, unique
from train.experiments.harness.statistics import Difference, paired_difference
from train.experiments.harness.study import Study

if TYPE_CHECKING:
    from jax import Array

    from ibnn_jax import EquilibriumClassifier

TITLE = "Function estimation by implicit layers (NEMON)"
PAPER = (
    "the condition in the infinity norm leaves a larger space to search than others, "
    "and its average iteration converges faster (abstract of arXiv 2106.03194; its "
    "figures are not compared here)."
)
SIZE = (11, 4)
NEURONS = 20
TRAIN, QUICK_TRAIN = 1000, 200  # points of the function
TEST = 2000
NOISE = 0.02  # standard deviation added to the training values
STEPS_SHOWN = 60  # of the iteration that is drawn
VARIANTS = {
    "nemon": "NEMON, gamma 0",
    "nemon .9": "NEMON, gamma 0.9",
    "norm": "|A|_inf <= 0.95",
    "mon": "MON, margin 0.1",
    "explicit": "explicit",
}
COLOURS = dict(zip(VARIANTS, ("#d1495b", "#e8a0a8", "#66a182", "#8d6a9f", "#3b6fb6")))


def wave(x: np.ndarray) -> np.ndarray:
    """A function of one variable in [-1, 1]: a wave with a kink."""
    return np.sin(5 * x[:, 0]) * 0.6 + np.abs(x[:, 0])


def hill(x: np.ndarray) -> np.ndarray:
    """A function of two variables in [-1, 1]: a hill beside a ridge."""
    ridge = np.cos(3 * x[:, 0] - 2 * x[:, 1])
    return np.exp(-4 * ((x - 0.3) ** 2).sum(1)) + 0.5 * ridge


FUNCTIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "wave": (wave, 1),
    "hill": (hill, 2),
}


def points(study: Study) -> list[Point]:
    return [{"function": f, "variant": v} for f in FUNCTIONS for v in VARIANTS]


def measure(study: Study, point: Point) -> list[Row]:
    """Rows of two kinds: the error of every seed, and residuals over steps of one."""
    import jax.numpy as jnp

    from train.experiments.harness.dense import fit

    function, variables = FUNCTIONS[point["function"]]
    rng = np.random.default_rng(0)
    count = QUICK_TRAIN if study.options.quick else TRAIN
    x, x_test = (rng.uniform(-1, 1, (size, variables)) for size in (count, TEST))
    y = function(x) + NOISE * rng.normal(size=count)
    ensemble = fit(
        functools.partial(_build, point["variant"], variables),
        _squared_error,
        jnp.asarray(x, jnp.float32),
        jnp.asarray(y, jnp.float32),
        seeds=study.options.seeds,
        epochs=study.options.epochs,
        rate=1e-2,
        on_epoch=study.stop_if_asked,
    )
    x_test, y_test = (jnp.asarray(a, jnp.float32) for a in (x_test, function(x_test)))
    found = ensemble.each(_measure, x_test, y_test)
    found = {name: np.asarray(values) for name, values in found.items()}
    rows = [
        {"seed": seed} | rounded(error=error, steps=found["steps"][seed])
        for seed, error in enumerate(found["error"])
    ]
    return rows + [
        {"step": step, "residual": f"{residual:.4g}"}
        for step, residual in enumerate(found["trace"][0])
        if np.isfinite(residual)
    ]


def _build(variant: str, variables: int, rngs) -> "EquilibriumClassifier":
    import ibnn_jax
    from train.experiments.harness.dense import Explicit

    layer = {
        "nemon": ibnn_jax.NEMON,
        "nemon .9": functools.partial(ibnn_jax.NEMON, gamma=0.9),
        "norm": ibnn_jax.NormBounded,
        "mon": functools.partial(ibnn_jax.MON, solver="auto"),
        "explicit": Explicit,
    }[variant]
    return ibnn_jax.EquilibriumClassifier(
        (variables,), 1, features=NEURONS, layer=layer, rngs=rngs
    )


def _squared_error(
    model: "EquilibriumClassifier", x: "Array", y: "Array", progress: "Array"
):
    return ((model(x)[:, 0] - y) ** 2).mean()


def _measure(
    model: "EquilibriumClassifier", seed: "Array", x: "Array", y: "Array"
) -> dict[str, "Array"]:
    """Test error, and how the layer's own iteration converges on the test inputs.

    The iteration is the one that the condition is made for: averaged steps for NEMON
    and for the norm condition, Peaceman-Rachford for MON.
    """
    import jax.numpy as jnp

    import ibnn_jax
    from ibnn_jax import nemon

    error = jnp.sqrt(((model(x)[:, 0] - y) ** 2).mean())
    layer = model.layer
    if not hasattr(layer, "matrix"):  # explicit: nothing is iterated
        return {"error": error, "steps": 0 * error, "trace": error[None] * jnp.nan}
    monotone = isinstance(layer, ibnn_jax.MON)
    solution = nemon.solve(
        layer.matrix(),
        layer.affine(x),
        solver=nemon.PeacemanRachford() if monotone else ibnn_jax.Picard(),
        trace=True,
    )
    trace = solution.stats.trace.max(0)[:STEPS_SHOWN]
    return {"error": error, "steps": solution.stats.steps.max(), "trace": trace}


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    axes = figure.subplots(1, 3)
    for axis, function in zip(axes, FUNCTIONS):
        _draw_errors(axis, pick(rows, function=function), function)
    for variant in unique(rows, "variant"):
        mine = pick(rows, function="hill", variant=variant)
        trace = [row for row in mine if np.isfinite(row["step"])]
        x, y = column(trace, "step"), column(trace, "residual")
        if len(x):  # an explicit network iterates nothing
            axes[2].plot(x, y, color=COLOURS[variant], label=VARIANTS[variant])
    axes[2].set(yscale="log", xlabel="step", title="residual of the iteration, hill")
    axes[2].legend(fontsize=7)
    axes[0].set_ylabel("test error (root mean square)")


def _draw_errors(axis: Axes, rows: Sequence[Row], function: str) -> None:
    """A point for the error of every seed, and a bar at their median."""
    variants = unique(rows, "variant")
    for place, variant in enumerate(variants):
        values, colour = column(_seeds(rows, variant), "error"), COLOURS[variant]
        axis.plot([place] * len(values), values, "o", color=colour, markersize=4)
        axis.plot(place, np.nanmedian(values), "_", color=colour, markersize=20)
    axis.set_xticks(range(len(variants)), [v.replace(" ", "\n") for v in variants])
    axis.set(title=function, yscale="log")


def _seeds(rows: Sequence[Row], variant: str) -> list[Row]:
    """The rows of the errors: those with a seed."""
    return [row for row in pick(rows, variant=variant) if np.isfinite(row["seed"])]


def verdict(rows: Sequence[Row]) -> str:
    parts, differences = [], []
    for function in unique(rows, "function"):
        mine = pick(rows, function=function)
        reference = _seeds(mine, "nemon")
        numbers = []
        for variant in unique(mine, "variant"):
            seeds = _seeds(mine, variant)
            text = f"{VARIANTS[variant]} {np.nanmedian(column(seeds, 'error')):.4f}"
            if variant != "explicit":
                text += f" ({column(seeds, 'steps').max():g} steps)"
            lost = np.isnan(column(seeds, "error")).sum()
            if lost:
                text += f" (not finite in {lost} seeds)"
            if variant != "nemon":
                differences.append(paired_difference(seeds, reference, "error"))
                text += f" [{_interval(differences[-1])}]"
            numbers.append(text)
        parts.append(f"{function}: {', '.join(numbers)}")
    return (
        "Median test error, and the most steps of the layer's own iteration on 2,000 "
        f"inputs to a residual of 1e-6; in brackets the difference to NEMON with gamma "
        f"0. {'. '.join(parts)}." + style.paired(differences)
    )


def _interval(difference: Difference) -> str:
    mean, low, high = difference.mean, difference.low, difference.high
    return f"{mean:+.4f}, {low:+.4f} to {high:+.4f}"
