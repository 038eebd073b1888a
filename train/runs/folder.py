"""The folder of a run, read and written without JAX: config, metrics, timings, summary, and the table made of them.

config.json    the options, resolved
setup.json     what was known at the start: data, parameters, versions, device
metrics.jsonl  a line for every model, epoch and seed; the same bytes whenever the same run is repeated on the same CPU
seconds.jsonl  a line for every model and epoch
summary.json   the results, written last: a run that has it is finished
"""

import contextlib
import dataclasses
import fcntl
import json
import os
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


