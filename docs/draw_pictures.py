"""The pictures of the README and of the theory page: `python -m docs.draw_pictures`."""

import csv
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import ibnn_jax
from train.data import arrows

DOCS = Path(__file__).parent
P = 10.0
BLUE, GOLD, INK = "#3b6ea8", "#e0a83c", "#222222"


def boundary(figure):
    """Decision regions of the best of 20 networks, from the experiment's own file."""
    with (DOCS / "results/boundary2d/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    data = arrows(train=2, test=1200)
    points, labels = data.test_images.reshape(-1, 2), data.test_labels
    cases = {"three standard neurons": 0.0, "three IBNN neurons, lam = -2": -2.0}
    for axis, (title, lam) in zip(figure.subplots(1, 2), cases.items()):
        mine = [r for r in rows if float(r["lam"]) == lam and float(r["p"]) == P]
        best = max(float(r["accuracy"]) for r in mine if r["accuracy"])
        lines = sorted(
            (int(r["line"]), np.array(r["logits"].split(), float))
            for r in mine
            if r["logits"]
        )
        grid = np.stack([values for _, values in lines])
        ticks = np.linspace(-1, 1, len(grid))
        axis.contourf(ticks, ticks, grid > 0, [-0.5, 0.5, 1.5], colors=[GOLD, BLUE],
                      alpha=0.25)  # fmt: skip
        axis.contour(ticks, ticks, grid, [0], colors=INK, linewidths=1.5)
        for label, color in ((0, GOLD), (1, BLUE)):
            x, y = points[labels == label].T
            axis.scatter(x, y, s=3, color=color, linewidths=0)
        axis.set(title=f"{title}: {100 * best:.1f}%", aspect="equal")
        axis.set(xticks=[], yticks=[], xlim=(-1, 1), ylim=(1, -1))


def neuron_map(figure):
    """z against y in one group of 784 neurons, and its slope."""
    y = jnp.sort(0.3 * jax.random.normal(jax.random.key(0), (784,)))
    left, right = figure.subplots(1, 2)
    for lam in (-2.0, -0.5, -0.1, 0.0, 0.05, 0.09):
        z = ibnn_jax.implicit_bias(
            y, lam, P, ibnn_jax.Uniform((-1,)), solver=ibnn_jax.Newton()
        )
        weight = ((1 - jnp.tanh(P * (z - z[:, None])) ** 2) * P).mean(1)
        left.plot(y, z, label=f"lam = {lam:g}")
        right.semilogy(y, 1 / (1 - lam * weight), label=f"lam = {lam:g}")
    left.set(xlabel="y", ylabel="z", title="what the neurons of a group become")
    right.set(xlabel="y", ylabel="slope of z", title="compressed or spread")
    left.legend(fontsize=8)


def two_neurons(figure):
    """Half the distance of two neurons with w = 1/2: energy and solutions."""
    left, right = figure.subplots(1, 2)
    d = np.linspace(-0.35, 0.35, 1401)
    for share in (-2.0, 0.0, 0.9, 2.0):
        lam = share / P
        y = 0.02
        energy = (d - y) ** 2 - lam / 2 * np.log(np.cosh(2 * P * d)) / P
        left.plot(d, energy - energy.min(), label=f"lam p = {share:g}")
        right.plot(d - lam / 2 * np.tanh(2 * P * d), d, label=f"lam p = {share:g}")
    left.set(xlabel="d", ylabel="E(d), y = 0.02", ylim=(0, 0.05), title="energy")
    right.set(xlabel="y", ylabel="d", xlim=(-0.2, 0.2), title="solutions d of every y")
    left.legend(fontsize=8)


PICTURES = {
    "boundary": (boundary, (8, 4.2)),
    "neuron_map": (neuron_map, (9, 3.8)),
    "two_neurons": (two_neurons, (9, 3.8)),
}


def main():
    for name, (draw, size) in PICTURES.items():
        figure = plt.figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(DOCS / "pictures" / f"{name}.png", dpi=110)
        plt.close(figure)


if __name__ == "__main__":
    main()
