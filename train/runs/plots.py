"""Curves of finished or unfinished runs, drawn from their files alone, without JAX.

python -m train.runs.plots RUN [RUN ...] [--out curves.png]
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np

from train.runs.folder import read_all

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402, the backend comes first

COLOURS = ("#3b6fb6", "#d1495b", "#66a182", "#8d6a9f", "#edae49", "#555555")


def curves(folders, out):
    """Draw accuracy, loss, lam and solver steps over the epochs: medians over the seeds and 90% bands. Returns the path."""
    runs = read_all(folders)
    if not runs:
        raise ValueError(f"no finished epoch in {', '.join(map(str, folders))}")
    figure, ((accuracy, loss), (lam, steps)) = plt.subplots(
        2, 2, figsize=(10, 7), layout="constrained"
    )
    for (name, values), colour in zip(runs.items(), COLOURS * len(runs)):
        _band(accuracy, 100 * values["test_accuracy"], colour, f"{name}, test")
        _band(
            accuracy,
            100 * values["train_accuracy"],
            colour,
            f"{name}, training",
            style=":",
        )
        _band(loss, values["test_loss"], colour, f"{name}, test")
        _band(loss, values["train_loss"], colour, f"{name}, training", style=":")
        for layer in range(values["lam"].shape[2] if "lam" in values else 0):
            style = ("-", "--", "-.", ":")[layer % 4]
            _band(
                lam,
                values["lam"][:, :, layer],
                colour,
                f"{name}, layer {layer + 1}",
                style=style,
            )
            _band(
                steps,
                values["solver_steps"][:, :, layer],
                colour,
                f"{name}, layer {layer + 1}",
                style=style,
            )
    titles = {
        accuracy: "accuracy, %",
        loss: "cross-entropy",
        lam: "lam",
        steps: "solver steps, mean per group, test images",
    }
    for axis, title in titles.items():
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(fontsize=8)
        else:
            axis.text(
                0.5,
                0.5,
                "no implicit layer",
                ha="center",
                va="center",
                transform=axis.transAxes,
                color="gray",
            )
    lowest = min(np.quantile(v["test_accuracy"], 0.1) for v in runs.values())
    accuracy.set_ylim(
        bottom=max(0, 100 * lowest - 5)
    )  # the first epochs would flatten the rest
    figure.suptitle("median and 90% interval over the seeds")
    figure.savefig(out, dpi=130)
    plt.close(figure)
    return Path(out)


def _band(axis, values, colour, label, style="-"):
    """values [S, epochs]."""
    epochs = np.arange(1, values.shape[1] + 1)
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95), axis=0)
    axis.plot(
        epochs,
        middle,
        style,
        color=colour,
        label=label,
        linewidth=1.4,
        marker="." if len(epochs) == 1 else None,
    )
    axis.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)


def main():
    parser = argparse.ArgumentParser(
        prog="python -m train.runs.plots",
        allow_abbrev=False,
        description="Draw the curves of runs.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--out",
        default=None,
        help="picture to write; default: curves.png in the first run",
    )
    options = parser.parse_args()
    try:
        print(curves(options.runs, options.out or Path(options.runs[0], "curves.png")))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
