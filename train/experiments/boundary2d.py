"""Fig. 2: decision boundaries of three hidden neurons on the two concentric arrows."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.experiments.harness import style
from train.experiments.harness.results import Point, Row, column, pick, rounded
from train.experiments.harness.study import Study

if TYPE_CHECKING:
    from flax import nnx
    from jax import Array

TITLE = "Three hidden neurons on two concentric arrows (Fig. 2)"
PAPER = "IBNN approximates the boundary, which is not convex, well; the SM does not."
SIZE = (10, 5)
SIDE = 81  # points along one side of the grid that the boundary is drawn from
LAM, P = -2.0, 10.0
LAMS = (-0.1, -0.5, -2.0, -5.0)
PS = (1.0, 3.0, 10.0, 30.0)
RATE = 0.02  # the learning rate of the first step; it falls to 0 along a cosine
BATCH = 100


def points(study: Study) -> list[Point]:
    quick = study.options.quick
    by_lam = [{"lam": lam, "p": P} for lam in (LAMS[1:3] if quick else LAMS)]
    by_p = [{"lam": LAM, "p": p} for p in (PS[1:2] if quick else PS) if p != P]
    return [{"lam": 0.0, "p": P}, *by_lam, *by_p]


def measure(study: Study, point: Point) -> list[Row]:
    """Accuracy of every seed, and the logits of the best one, a row per grid line."""
    import jax

    from train.data import arrows

    data = arrows()
    train = functools.partial(
        _train, lam=point["lam"], p=point["p"], epochs=study.options.epochs
    )
    accuracy, grid = jax.jit(jax.vmap(train, in_axes=(0, None, None, None, None)))(
        jax.random.split(jax.random.key(5), study.options.seeds),
        data.train_images.reshape(-1, 2),
        data.train_labels,
        data.test_images.reshape(-1, 2),
        data.test_labels,
    )
    accuracy = np.asarray(accuracy)
    best = np.asarray(grid)[accuracy.argmax()]
    rows = [rounded(seed=seed, accuracy=a) for seed, a in enumerate(accuracy)]
    return rows + [
        {"line": i, "logits": " ".join(f"{logit:.3f}" for logit in line)}
        for i, line in enumerate(best)
    ]


def _network(lam: float, p: float, rngs: "nnx.Rngs") -> "nnx.Module":
    """IBNNLinear(2, 3), ReLU included -> batch norm -> Linear(3, 1).

    lam = 0 makes it the SM.

    Weights and offsets start as N(0, 1), but for the head's offset, which starts at 0.
    Momentum 0 makes batch norm remember the statistics of its last batch alone.
    """
    from flax import nnx

    import ibnn_jax

    normal = nnx.initializers.normal(1.0)
    hidden = ibnn_jax.IBNNLinear(
        2,
        3,
        lam=lam,
        p=p,
        train_lam=False,
        kernel_init=normal,
        bias_init=normal,
        rngs=rngs,
    )
    norm = nnx.BatchNorm(3, momentum=0.0, epsilon=1e-5, rngs=rngs)
    head = nnx.Linear(3, 1, kernel_init=normal, rngs=rngs)
    return nnx.Sequential(hidden, norm, head)


def _train(
    key: "Array",
    x: "Array",
    labels: "Array",
    x_test: "Array",
    labels_test: "Array",
    *,
    lam: float,
    p: float,
    epochs: int,
) -> tuple["Array", "Array"]:
    """One network, trained by Adam: test accuracy, and logits on the grid."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    init_key, order_key = jax.random.split(key)
    model = _network(lam, p, nnx.Rngs(init_key))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    steps = epochs * (len(x) // BATCH)
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))

    def loss(params, rows):
        logits = nnx.merge(graph, params, rest, copy=True)(x[rows])[:, 0]
        return optax.sigmoid_binary_cross_entropy(logits, labels[rows]).mean()

    def step(carry, rows):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, rows), state)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry, key):
        order = jax.random.permutation(key, len(x))
        return jax.lax.scan(step, carry, order.reshape(-1, BATCH))

    carry = params, optimizer.init(params)
    (params, _), _ = jax.lax.scan(epoch, carry, jax.random.split(order_key, epochs))
    model = nnx.merge(graph, params, rest, copy=True)
    model(x)  # batch norm takes the statistics of all training points
    model.eval()
    accuracy = ((model(x_test)[:, 0] > 0) == labels_test).mean()
    ticks = jnp.linspace(-1, 1, SIDE)
    grid = jnp.stack(jnp.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    return accuracy, model(grid).reshape(SIDE, SIDE)


def _curves(rows: Sequence[Row]) -> dict[tuple[float, float], tuple]:
    """(lam, p) -> accuracies of the seeds, logits [SIDE, SIDE] of the best one."""
    curves = {}
    for lam, p in dict.fromkeys((row["lam"], row["p"]) for row in rows):
        chosen = pick(rows, lam=lam, p=p)
        seeds = [row for row in chosen if np.isfinite(row["seed"])]
        lines = [row for row in chosen if np.isfinite(row["line"])]
        lines.sort(key=lambda row: row["line"])
        grid = np.array([[float(v) for v in row["logits"].split()] for row in lines])
        curves[lam, p] = column(seeds, "accuracy"), grid
    return curves


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    curves = _curves(rows)
    sm = {"SM": next(curves[key] for key in curves if key[0] == 0)}
    by_lam = {
        f"lam {lam:g}": curves[lam, p] for lam, p in curves if lam != 0 and p == P
    }
    by_p = {f"p {p:g}": curves[lam, p] for lam, p in sorted(curves) if lam == LAM}
    _panel(left, sm | by_lam, "Greens", f"p = {P:g}")
    _panel(right, sm | by_p, "Reds", f"lam = {LAM:g}")


def _panel(axis: Axes, curves: dict[str, tuple], shades: str, title: str) -> None:
    """The arrows, and over them the boundary of the best network of every kind."""
    import matplotlib

    from train.data import ARROW, HOLE, TRAPEZOID

    for polygon, colour, alpha in (
        (TRAPEZOID, "#3b6fb6", 0.35),
        (HOLE, "white", 1),
        (ARROW, "#edc948", 0.35),
    ):
        axis.fill(*polygon.T, color=colour, alpha=alpha, linewidth=0)
    ticks = np.linspace(-1, 1, SIDE)
    dark = np.linspace(0.4, 0.95, max(2, len(curves) - 1))
    colours = ["#1f4e9c", *matplotlib.colormaps[shades](dark)]
    for (name, (accuracy, grid)), colour in zip(curves.items(), colours):
        axis.contour(ticks, ticks, grid, levels=[0], colors=[colour])
        axis.plot([], [], color=colour, label=f"{name}: {_accuracies(accuracy)}")
    axis.set(title=title, xlim=(-1, 1), ylim=(1, -1), aspect="equal")
    axis.legend(fontsize=7, loc="lower right")


def _accuracies(accuracy: np.ndarray) -> str:
    best, median = style.percent(accuracy.max()), style.percent(np.median(accuracy))
    return f"{best} (median {median})"


def verdict(rows: Sequence[Row]) -> str:
    accuracies = {key: accuracy for key, (accuracy, _) in _curves(rows).items()}
    sm = next(accuracy for (lam, _), accuracy in accuracies.items() if lam == 0)
    ibnn = {key: accuracy for key, accuracy in accuracies.items() if key[0] != 0}
    lam, p = max(ibnn, key=lambda key: np.median(ibnn[key]))
    others = "; ".join(
        f"lam {lam:g}, p {p:g}: {_accuracies(accuracy)}"
        for (lam, p), accuracy in ibnn.items()
    )
    return (
        f"Best test accuracy of the seeds: SM {_accuracies(sm)}; {others}. By the "
        f"median, lam {lam:g} with p {p:g} is the best IBNN."
    )
