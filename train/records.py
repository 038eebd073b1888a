"""The folder of a run, read and written without JAX: config, metrics, timings, summary, and the table made of them.

config.json    the options, resolved
setup.json     what was known at the start: data, parameters, versions, device
metrics.jsonl  a line for every model, epoch and seed; the same bytes whenever the same run is repeated on the same CPU
seconds.jsonl  a line for every model and epoch
summary.json   the results, written last: a run that has it is finished

    python -m train.records RUN [RUN ...]      # print the table of finished or unfinished runs
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import sys
from pathlib import Path

import numpy as np

from train.config import Config


class RunFolder:
    """The folder of one run, held by one process at a time."""

    def __init__(self, config):
        self.config, self.path = config, Path(config.out)

    def __truediv__(self, name):
        return self.path / name

    @contextlib.contextmanager
    def held(self):
        """Make the folder, keep other processes out, and write config.json or check that it says the same.

        ValueError if another process trains here, or if the folder is of a run with other options.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self / ".lock", "w") as lock:
            try:
                fcntl.flock(
                    lock, fcntl.LOCK_EX | fcntl.LOCK_NB
                )  # goes with the process, even a killed one
            except BlockingIOError:
                raise ValueError(
                    f"another process is training into {self.path}"
                ) from None
            self._check_config()
            yield self

    def _check_config(self):
        file = self / "config.json"
        if file.exists():
            old = Config.from_dict(json.loads(file.read_text()))
            names = self.config.differences(old)
            if names:
                differ = "; ".join(
                    f"{n} is {getattr(old, n)!r} there and {getattr(self.config, n)!r} here"
                    for n in names
                )
                raise ValueError(
                    f"{self.path} holds a run with other options: {differ}. Give another folder by --out, or the "
                    "same options to resume it"
                )
        else:
            write_json(file, dataclasses.asdict(self.config))

    def finished(self):
        return (self / "summary.json").exists()

    def check_setup(self, setup):
        """Write setup.json, or check that the data is still what it was. ValueError if it is not."""
        file = self / "setup.json"
        if file.exists():
            old = read_json(file)["data"]["fingerprint"]
            if old != setup["data"]["fingerprint"]:
                raise ValueError(
                    f"the data set is not the one the run in {self.path} was begun with (digest {old}, now "
                    f"{setup['data']['fingerprint']}); give another folder by --out"
                )
        write_json(file, setup)

    def rewrite(self, snapshots):
        """Make metrics.jsonl and seconds.jsonl say what these Snapshots {model: Snapshot} say, and nothing else."""
        for name, lines in (
            ("metrics.jsonl", self._metrics),
            ("seconds.jsonl", _seconds),
        ):
            text = "".join(
                lines(model, s, epoch)
                for model, s in snapshots.items()
                for epoch in range(s.epoch)
            )
            write_text(self / name, text)

    def append(self, model, snapshot):
        """Add the lines of the last epoch."""
        for name, lines in (
            ("metrics.jsonl", self._metrics),
            ("seconds.jsonl", _seconds),
        ):
            with open(self / name, "a") as file:
                file.write(lines(model, snapshot, snapshot.epoch - 1))

    def _metrics(self, model, snapshot, epoch):
        lines = ""
        for row in range(self.config.seeds):
            values = {
                name: value[row, epoch].tolist()
                for name, value in snapshot.history.items()
            }
            lines += (
                json.dumps(
                    {
                        "model": model,
                        "seed": self.config.first_seed + row,
                        "epoch": epoch + 1,
                    }
                    | values
                )
                + "\n"
            )
        return lines


def _seconds(model, snapshot, epoch):
    return (
        json.dumps(
            {
                "model": model,
                "epoch": epoch + 1,
                "seconds": round(float(snapshot.seconds[epoch]), 4),
            }
        )
        + "\n"
    )


def write_text(path, text):
    """Write beside and rename: whoever reads finds the old text or the new one."""
    beside = Path(f"{path}.new")
    with open(beside, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path):
    return json.loads(Path(path).read_text())


def read_lines(path):
    """The lines of a .jsonl file; one cut off in the middle of its writing, at the end, is left out."""
    lines = (
        Path(path).read_text().splitlines(keepends=True) if Path(path).exists() else []
    )
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read(folder):
    """{model: {name: array [S, epochs] or [S, epochs, n]}} of a run, with "seconds" [epochs]: the epochs that are complete."""
    lines, seconds = (
        read_lines(Path(folder, "metrics.jsonl")),
        read_lines(Path(folder, "seconds.jsonl")),
    )
    found = {}
    for model in dict.fromkeys(line["model"] for line in lines):
        seeds = sorted({line["seed"] for line in lines if line["model"] == model})
        table = {
            (line["seed"], line["epoch"]): line
            for line in lines
            if line["model"] == model
        }
        epochs = min(max(e for s, e in table if s == seed) for seed in seeds)
        names = [
            name
            for name in table[seeds[0], 1]
            if name not in ("model", "seed", "epoch")
        ]
        found[model] = {
            n: np.array(
                [[table[s, e + 1][n] for e in range(epochs)] for s in seeds], float
            )
            for n in names
        }
        found[model]["seconds"] = np.array(
            [line["seconds"] for line in seconds if line["model"] == model][:epochs]
        )
    return found


def read_all(folders):
    """`read` of several runs together; a model that more than one of them has is called by its folder too."""
    runs = {Path(folder): read(folder) for folder in folders}
    count = lambda model: sum(model in run for run in runs.values())
    return {
        (model if count(model) == 1 else f"{model} ({folder.name})"): values
        for folder, run in runs.items()
        for model, values in run.items()
    }


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
        sys.exit("usage: python -m train.records RUN [RUN ...]")
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
