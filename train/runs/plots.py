"""Curves of finished or unfinished runs, drawn from their files alone, without JAX."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np

from train.runs.folder import History, read_all, runs_in

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402, the backend comes first

COLOURS = ("#3b6fb6", "#d1495b", "#66a182", "#8d6a9f", "#edae49", "#555555")
STYLES = ("-", "--", "-.", ":")  # of the layers
TITLES = (
    "accuracy, %",
    "cross-entropy",
    "lam",
    "solver steps, mean per group, test images",
)


def curves(folders: Iterable[str | Path], out: str | Path) -> Path:
    """Draw accuracy, loss, lam and solver steps over the epochs; returns the picture.

    Lines are medians over the seeds, bands their 5th to 95th percentile.

    Raises:
        FileNotFoundError, ValueError: a folder holds no finished epoch, or is damaged.
        OSError: the picture cannot be written.
    """
    folders = runs_in(folders)
    runs = {name: each.history for name, each in read_all(folders).items()}
    if not runs:
        raise ValueError(f"no finished epoch in {', '.join(map(str, folders))}")
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for (name, history), colour in zip(runs.items(), COLOURS * len(runs)):
        _draw_model(axes.ravel(), name, history, colour)
    for axis, title in zip(axes.ravel(), TITLES, strict=True):
        _finish(axis, title)
    # The first epochs would flatten the rest.
    lowest = min(np.quantile(h["test_accuracy"], 0.1) for h in runs.values())
    axes[0, 0].set_ylim(bottom=max(0, 100 * lowest - 5))
    figure.suptitle("median and 5th to 95th percentile of the seeds")
    try:
        figure.savefig(out, dpi=130)
    except ValueError as error:  # an ending that is no picture's
        raise ValueError(f"cannot draw {out}: {error}") from error
    finally:
        plt.close(figure)
    return Path(out)


def _draw_model(axes, name: str, history: History, colour: str) -> None:
    accuracy, loss, lam, steps = axes
    parts = (("test", "-"), ("val", "--"), ("train", ":"))
    for part, style in parts:
        if f"{part}_loss" in history:
            label = f"{name}, {part}"
            _band(accuracy, 100 * history[f"{part}_accuracy"], colour, label, style)
            _band(loss, history[f"{part}_loss"], colour, label, style)
    for axis, key in ((lam, "lam"), (steps, "solver_steps")):
        for layer in range(history[key].shape[2] if key in history else 0):
            label, style = f"{name}, layer {layer + 1}", STYLES[layer % len(STYLES)]
            _band(axis, history[key][:, :, layer], colour, label, style)


def _band(axis, values: np.ndarray, colour: str, label: str, style: str) -> None:
    """values [S, epochs]."""
    epochs = np.arange(1, values.shape[1] + 1)
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95), axis=0)
    marker = "." if len(epochs) == 1 else None
    options = {"color": colour, "label": label, "linewidth": 1.4, "marker": marker}
    axis.plot(epochs, middle, style, **options)
    axis.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)


def _finish(axis, title: str) -> None:
    axis.set(title=title, xlabel="epoch")
    axis.grid(alpha=0.3)
    if axis.has_data():
        axis.legend(fontsize=8)
        return
    options = {"ha": "center", "va": "center", "transform": axis.transAxes}
    axis.text(0.5, 0.5, "none", color="gray", **options)
