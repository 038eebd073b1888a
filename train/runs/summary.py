"""The results of runs in numbers, and the table made of them: python -m train.runs.summary RUN [RUN ...]."""

import sys
from pathlib import Path

import numpy as np

from train.runs.folder import read_all, read_json


def spread(values):
    """Median and 90% interval (5th and 95th percentile, interpolated) over the seeds: [median, low, high]."""
    return [float(np.quantile(values, q)) for q in (0.5, 0.05, 0.95)]


def summarize(runs):
    """Results per model of `read`: accuracies and lam as [median, low, high] over the seeds.

    epochs_to_sm_best: median over the seeds of the first epoch whose test accuracy reaches the median over the standard
    networks of their best one; None if half of the seeds never do, or if there are no standard networks.
    """
    sm = next((values for name, values in runs.items() if name.startswith("sm")), None)
    target = None if sm is None else float(np.median(sm["test_accuracy"].max(1)))
    results = {}
    for name, values in runs.items():
        accuracy, loss = values["test_accuracy"], values["test_loss"]
        result = results[name] = {
            "seeds": len(accuracy),
            "epochs": accuracy.shape[1],
            "accuracy_last": spread(accuracy[:, -1]),
            "accuracy_best": spread(accuracy.max(1)),
            "accuracy_at_lowest_loss": spread(
                accuracy[np.arange(len(accuracy)), loss.argmin(1)]
            ),
            "loss_lowest": spread(loss.min(1)),
            "train_accuracy_last": spread(values["train_accuracy"][:, -1]),
            "epochs_to_sm_best": None,
            "seconds": round(float(values["seconds"].sum()), 1),
            "seconds_per_epoch": round(float(np.median(values["seconds"])), 4),
        }
        if target is not None:
            reached = accuracy >= target
            first = np.where(reached.any(1), reached.argmax(1) + 1.0, np.inf)
            median = float(np.median(first))
            result["epochs_to_sm_best"] = median if np.isfinite(median) else None
        if "solver_steps" in values:
            result["lam_last"] = [
                spread(values["lam"][:, -1, i]) for i in range(values["lam"].shape[2])
            ]
            result["solver_steps_mean"] = float(values["solver_steps"].mean())
            result["solver_steps_max"] = int(values["solver_steps_max"].max())
            result["solver_converged"] = float(values["solver_converged"].mean())
            result["solver_residual_max"] = float(values["solver_residual_max"].max())
    return results


def table(results, parameters=None):
    """The results of `summarize` as text, columns aligned; parameters: {model: count}."""
    percent = lambda v: f"{100 * v[0]:.2f} [{100 * v[1]:.2f}, {100 * v[2]:.2f}]"
    has_sm = any(name.startswith("sm") for name in results)
    rows = [
        [
            "model",
            "accuracy %, last",
            "best",
            "at lowest loss",
            "parameters",
            "epochs to SM's best",
            "solver steps",
            "converged",
            "lam",
            "seconds",
        ]
    ]
    for name, r in results.items():
        reached = (
            "-"
            if not has_sm
            else f"> {r['epochs']}"
            if r["epochs_to_sm_best"] is None
            else f"{r['epochs_to_sm_best']:g}"
        )
        count = (parameters or {}).get(name.split()[0], "-")
        row = [
            name,
            percent(r["accuracy_last"]),
            percent(r["accuracy_best"]),
            percent(r["accuracy_at_lowest_loss"]),
            str(count),
            reached,
        ]
        if "lam_last" in r:
            lam = ", ".join(f"{v[0]:.3g}" for v in r["lam_last"])
            row += [
                f"{r['solver_steps_mean']:.1f} (max {r['solver_steps_max']})",
                f"{100 * r['solver_converged']:.2f}%",
                lam,
            ]
        else:
            row += ["-"] * 3
        rows.append(row + [f"{r['seconds']:.1f}"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def footnote(results):
    seeds = sorted({r["seeds"] for r in results.values()})
    return f"accuracies on the test set: median [90% interval] over {' or '.join(map(str, seeds))} seeds; seconds: all seeds together"


def main(folders=None):
    folders = folders or sys.argv[1:]
    if not folders:
        sys.exit("usage: python -m train.runs.summary RUN [RUN ...]")
    runs = read_all(folders)
    if not runs:
        sys.exit(f"no finished epoch in {', '.join(folders)}")
    parameters = {}
    for folder in folders:
        parameters |= read_json(Path(folder, "setup.json"))["parameters"]
    results = summarize(runs)
    print(table(results, parameters))
    print(footnote(results))


if __name__ == "__main__":
    main()
