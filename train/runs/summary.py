"""The results of runs in numbers, and the table made of them, without JAX."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from train.config import OF_IMPLICIT_BIAS, Config
from train.options import names_of
from train.runs.folder import (
    History,
    Trained,
    read_all,
    read_json,
    runs_in,
)

Standards = dict[str, str | None]  # a model -> the standard one beside it
FEW_SEEDS = 5
RESAMPLES = 9999  # of the bootstrap


def spread(values: np.ndarray) -> list[float]:
    """[median, 5th percentile, 95th percentile] over the seeds, interpolated."""
    return [float(np.quantile(values, q)) for q in (0.5, 0.05, 0.95)]


def selection(history: History) -> str:
    """The part whose loss chose the weights: "val", or "test" where there is none."""
    return "val" if "val_loss" in history else "test"


def _epochs(history: History) -> int:
    return history["test_accuracy"].shape[1]


def selected_accuracy(history: History) -> np.ndarray:
    """Test accuracy of every seed [S] at the epoch of its lowest loss."""
    epoch = history[f"{selection(history)}_loss"].argmin(1)
    accuracy = history["test_accuracy"]
    return accuracy[np.arange(len(accuracy)), epoch]


def summarize(
    runs: dict[str, History], standards: Standards | None = None
) -> dict[str, dict]:
    """Results per model of `read`: numbers, or [median, low, high] over the seeds.

    Args:
        standards: the standard model that each is measured against, or None; when not
            given, "sm" where there is one.

    certified_last: share of the test images that are certified, after certified
        training.
    accuracy_selected: test accuracy at the epoch of the lowest loss on the validation
        images, or on the test images where there are none (selected_by says which).
    standard: the standard model that it is measured against, or None.
    epochs_to_sm_best: median over the seeds of the first epoch whose accuracy reaches
        the median over the standard networks of their best one; None if most of the
        seeds never do, or if there is no standard. Of an even number of seeds the
        median is the lower of the two in the middle, which a seed has.
    """
    if standards is None:
        standards = dict.fromkeys(runs, "sm" if "sm" in runs else None)
    results = {name: _result(history) for name, history in runs.items()}
    for name, history in runs.items():
        results[name]["standard"] = standard = standards[name]
        if standard:
            target = _lower_median(runs[standard]["test_accuracy"].max(1))
            results[name]["epochs_to_sm_best"] = _epochs_to(history, target)
    return results


def standard_beside(name: str, runs: dict[str, Trained]) -> str | None:
    """The standard model of the same run, else the first one that was trained alike."""
    ours = runs[name]
    standard = {other: run for other, run in runs.items() if run.model == "sm"}
    own = [other for other, run in standard.items() if run.folder == ours.folder]
    alike = [o for o, run in standard.items() if _alike(ours.config, run.config)]
    return next(iter(own + alike), None)


def _alike(ours: Config | None, theirs: Config | None) -> bool:
    """Whether two runs differ only in their networks, and in which seeds they have."""
    if ours is None or theirs is None:
        return False
    of_network = {"model", *OF_IMPLICIT_BIAS, *names_of(Config, group="solver")}
    return set(ours.differences(theirs)) <= of_network | {"seeds", "first_seed"}


def _result(history: History) -> dict:
    accuracy, loss = history["test_accuracy"], history["test_loss"]
    result = {
        "seeds": len(accuracy),
        "epochs": accuracy.shape[1],
        "selected_by": selection(history),
        "accuracy_last": spread(accuracy[:, -1]),
        "accuracy_best": spread(accuracy.max(1)),
        "accuracy_selected": spread(selected_accuracy(history)),
        "loss_lowest": spread(loss.min(1)),
        "train_accuracy_last": spread(history["train_accuracy"][:, -1]),
        "epochs_to_sm_best": None,
        "seconds": round(float(history["seconds"].sum()), 1),
        "seconds_per_epoch": _median_seconds(history),
    }
    if "test_certified" in history:
        result["certified_last"] = spread(history["test_certified"][:, -1])
    if "solver_steps" in history:
        lam = history.get("lam", np.zeros((1, 1, 0)))[:, -1]
        result["lam_last"] = [spread(lam[:, i]) for i in range(lam.shape[1])]
        result["solver_steps_mean"] = float(history["solver_steps"].mean())
        result["solver_steps_max"] = int(history["solver_steps_max"].max())
        result["solver_converged"] = float(history["solver_converged"].mean())
        result["solver_residual_max"] = float(history["solver_residual_max"].max())
    return result


def _median_seconds(history: History) -> float | None:
    seconds = history["seconds"]
    return round(float(np.median(seconds)), 4) if len(seconds) else None


def _epochs_to(history: History, target: float) -> float | None:
    reached = history["test_accuracy"] >= target
    first = np.where(reached.any(1), reached.argmax(1) + 1.0, np.inf)
    median = _lower_median(first)
    return median if np.isfinite(median) else None


def _lower_median(values: np.ndarray) -> float:
    return float(np.quantile(values, 0.5, method="lower"))


def paired_difference(ours: History, theirs: History) -> dict | None:
    """Difference of `selected_accuracy` between two models, seed by seed.

    Returns:
        mean over the seeds that both have, its 95% interval [low, high] by the BCa
        bootstrap (None for a single seed), the number of seeds, and of those in which
        the first model is better; None if they have no seed in common.
    """
    shared, at, at_theirs = np.intersect1d(
        ours["seed"], theirs["seed"], return_indices=True
    )
    if not len(shared):
        return None
    difference = selected_accuracy(ours)[at] - selected_accuracy(theirs)[at_theirs]
    return {
        "mean": float(difference.mean()),
        "interval": bootstrap_interval(difference),
        "seeds": len(shared),
        "better": int((difference > 0).sum()),
    }


def bootstrap_interval(values: np.ndarray) -> list[float] | None:
    """A 95% confidence interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    if np.ptp(values) < 1e-12:
        return [float(values.mean())] * 2  # every resample is the same
    from scipy.stats import bootstrap  # late: it takes a second to import

    rng = np.random.default_rng(0)
    result = bootstrap((values,), np.mean, n_resamples=RESAMPLES, rng=rng)
    interval = [float(v) for v in result.confidence_interval]
    if not np.isfinite(interval).all():
        result = bootstrap(
            (values,), np.mean, n_resamples=RESAMPLES, rng=rng, method="percentile"
        )
        interval = [float(v) for v in result.confidence_interval]
    return interval


def comparisons(runs: dict[str, History], standards: Standards) -> list[str]:
    """A line for every model beside its standard one after as many epochs, paired by
    seed.
    """
    lines = []
    for name, history in runs.items():
        standard = standards[name]
        if standard is None or name.split()[0] == "sm":
            continue
        if _epochs(history) != _epochs(runs[standard]):
            continue
        paired = paired_difference(history, runs[standard])
        if paired is None:
            continue
        line = (
            f"{name} - {standard}, paired by seed: {100 * paired['mean']:+.2f} points"
        )
        if paired["interval"]:
            low, high = (100 * v for v in paired["interval"])
            line += f", 95% bootstrap interval of the mean [{low:+.2f}, {high:+.2f}]"
            if paired["seeds"] < FEW_SEEDS:
                line += " (of so few seeds little more than their range)"
        lines.append(f"{line}, better in {paired['better']} of {paired['seeds']} seeds")
    return lines


def table(results: dict[str, dict], parameters: dict[str, int] | None = None) -> str:
    """The results of `summarize` as text, columns aligned.

    Best accuracies on the test set are shown only where the test set chose the weights.
    """
    certified = any("certified_last" in r for r in results.values())
    by_test = all(r["selected_by"] == "test" for r in results.values())
    selected = "at lowest loss" if by_test else "at lowest val. loss"
    columns = [
        "model",
        "accuracy %, last",
        *(["best"] if by_test else []),
        selected,
        *(["certified, last"] if certified else []),
        "parameters",
        "epochs to SM's best",
        "solver steps",
        "converged",
        "lam",
        "seconds",
    ]
    rows = [columns]
    for name, result in results.items():
        count = (parameters or {}).get(name, "-")
        best = [_percent(result["accuracy_best"])] if by_test else []
        proved = (
            _percent(result["certified_last"]) if "certified_last" in result else "-"
        )
        rows.append(
            [
                name,
                _percent(result["accuracy_last"]),
                *best,
                _percent(result["accuracy_selected"]),
                *([proved] if certified else []),
                str(count),
                _reached(result),
                *_solver_cells(result),
                f"{result['seconds']:.1f}",
            ]
        )
    return aligned(rows)


def aligned(rows: list[list[str]]) -> str:
    """Rows of cells as text; the first one is underlined."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in rows
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:]])


def _percent(values: list[float]) -> str:
    middle, low, high = (100 * v for v in values)
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def _reached(result: dict) -> str:
    if result["standard"] is None:
        return "-"
    if result["epochs_to_sm_best"] is None:
        return f"> {result['epochs']}"
    return f"{result['epochs_to_sm_best']:g}"


def _solver_cells(result: dict) -> list[str]:
    if "lam_last" not in result:
        return ["-"] * 3
    steps = f"{result['solver_steps_mean']:.1f} (max {result['solver_steps_max']})"
    lams = ", ".join(f"{values[0]:.3g}" for values in result["lam_last"])
    return [steps, f"{100 * result['solver_converged']:.2f}%", lams]


def footnote(results: dict[str, dict]) -> str:
    counts = sorted({r["seeds"] for r in results.values()})
    seeds = " or ".join(map(str, counts)) + (" seed" if counts == [1] else " seeds")
    parts = {r["selected_by"] for r in results.values()}
    chooser = {
        ("val",): "the validation images",
        ("test",): "the test images, as in the paper",
    }.get(tuple(sorted(parts)), "the test images in some runs, not in others")
    return (
        f"accuracies on the test set: median [5th, 95th percentile] over {seeds}"
        f"; the epoch of lowest loss is chosen by {chooser}; seconds: all seeds "
        "together"
    )


def show(folders: Iterable[str | Path]) -> str:
    """Table, comparison and footnote of finished or unfinished runs.

    Raises:
        FileNotFoundError, ValueError: a folder holds no run, or a damaged one.
    """
    folders = runs_in(folders)
    trained = read_all(folders)
    if not trained:
        raise ValueError(f"no finished epoch in {', '.join(map(str, folders))}")
    parameters = {}
    for folder in folders:
        setup = Path(folder, "setup.json")
        if setup.exists():
            values = read_json(setup)
            if not isinstance(values, dict):
                raise ValueError(f"{setup} is damaged: it describes no run")
            parameters |= values.get("parameters", {})
    runs = {name: each.history for name, each in trained.items()}
    standards = {name: standard_beside(name, trained) for name in trained}
    rows, counts = {}, {}
    for name, result in summarize(runs, standards).items():
        row = name + _unfinished(trained[name])
        rows[row], counts[row] = result, parameters.get(trained[name].model, "-")
    compared = comparisons(runs, standards)
    return "\n".join([table(rows, counts), *compared, footnote(rows)])


def _unfinished(run: Trained) -> str:
    """What is said beside the name of a model that is not trained to its end."""
    done = _epochs(run.history)
    if run.config is None or done >= run.config.epochs:
        return ""
    return f", {done} of {run.config.epochs} epochs"
