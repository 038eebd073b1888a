"""The folder of a run, read and written without JAX.

config.json    the options, resolved
setup.json     what was known at the start: data, parameters, versions, device
metrics.jsonl  a line for every model, epoch and seed; the same bytes whenever the same
               run is repeated on the same CPU
seconds.jsonl  a line for every model and epoch
summary.json   the results, written last: a run that has it is finished
"""

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from train.config import Config
from train.runs.files import (
    append_text,
    read_json,
    read_lines,
    write_json,
    write_text,
    writing,
)

if TYPE_CHECKING:
    from train.engine.loop import Snapshot

__all__ = [
    "RunFolder",
    "read",
    "read_all",
    "runs_in",
    "read_config",
    "read_json",
    "read_lines",
    "write_json",
    "write_text",
]

# History of one model: name -> [S, epochs] or [S, epochs, n], and "seconds" [epochs].
History = dict[str, np.ndarray]


class RunFolder:
    """The folder of one run, held by one process at a time."""

    def __init__(self, config: Config):
        self.config, self.path = config, Path(config.out or ".")

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @contextlib.contextmanager
    def held(self) -> Iterator["RunFolder"]:
        """Make the folder, and keep other processes out.

        Raises:
            ValueError: another process trains here, or the folder is of a run with
                other options.
            OSError: the folder cannot be made.
        """
        for path in (self.path, *self.path.parents):
            if path.exists() and not path.is_dir():
                raise ValueError(
                    f"{path} is a file, not a folder; give another folder by --out"
                )
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self / ".lock", "w")
        with lock:
            try:
                # The lock goes with the process, even a killed one.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"another process is training into {self.path}"
                ) from None
            self._check_config()
            yield self

    def trained(self) -> bool:
        """Whether there is an epoch here that other options would lose."""
        metrics = self / "metrics.jsonl"
        logged = metrics.is_file() and metrics.stat().st_size > 0
        return logged or any((self / "checkpoints").glob("*/[0-9]*"))

    def _check_config(self) -> None:
        """Check that config.json, if there is one, allows this run to go on."""
        if not (self / "config.json").exists():
            return
        old = read_config(self.path)
        names = self.config.differences(old)
        if names == ["epochs"] and self._extends(old):
            return
        if names and self.trained():
            raise ValueError(
                f"{self.path} holds a run with other options: "
                f"{differing(names, self.config, old)}. Give another folder by --out, "
                "or the same options to resume it"
            )

    def _extends(self, old: Config) -> bool:
        """May this run go on with more epochs? False if it is not about that.

        Raises:
            ValueError: the rates of the epochs that are done would have been others.
        """
        if self.config.epochs < old.epochs:
            return False
        if self.config.schedule != "constant":
            raise ValueError(
                f"{self.path} holds a run of {old.epochs} epochs, which cannot be "
                f"extended to {self.config.epochs}: the {self.config.schedule} "
                "schedule would have given its first epochs other learning rates; only "
                "--schedule constant can be extended. Give another folder by --out"
            )
        return True

    def finished(self) -> bool:
        """Whether this run is all there; with more epochs it is not."""
        if not (self / "summary.json").exists():
            return False
        return not self.config.differences(read_config(self.path))

    def check_data(self, setup: dict) -> None:
        """Check that the data is still what it was.

        Raises:
            ValueError: it is not.
        """
        file = self / "setup.json"
        if file.exists() and self.trained():
            old = _get(read_json(file), file, "data", "fingerprint")
            new = setup["data"]["fingerprint"]
            if old != new:
                raise ValueError(
                    f"the data set is not the one the run in {self.path} was begun "
                    f"with (digest {old}, now {new}); give another folder by --out"
                )

    def begin(self, setup: dict, snapshots: "dict[str, Snapshot]") -> None:
        """Write what is known at the start, once nothing speaks against the run.

        Lines of epochs that no checkpoint holds are dropped.
        """
        (self / "summary.json").unlink(missing_ok=True)
        write_json(self / "config.json", dataclasses.asdict(self.config))
        write_json(self / "setup.json", setup)
        self.rewrite(snapshots)

    def rewrite(self, snapshots: "dict[str, Snapshot]") -> None:
        """Make metrics.jsonl and seconds.jsonl hold these snapshots, nothing else."""
        for name, lines in self._logs():
            text = "".join(
                lines(model, snapshot, epoch)
                for model, snapshot in snapshots.items()
                for epoch in range(snapshot.epoch)
            )
            write_text(self / name, text)

    def append(self, model: str, snapshot: "Snapshot") -> None:
        """Add the lines of the last epoch."""
        for name, lines in self._logs():
            append_text(self / name, lines(model, snapshot, snapshot.epoch - 1))

    def _logs(self):
        return ("metrics.jsonl", self._metrics), ("seconds.jsonl", _seconds)

    def _metrics(self, model: str, snapshot: "Snapshot", epoch: int) -> str:
        lines = []
        for row in range(self.config.seeds):
            seed = self.config.first_seed + row
            line = {"model": model, "seed": seed, "epoch": epoch + 1}
            for name, values in snapshot.history.items():
                line[name] = values[row, epoch].tolist()
            lines.append(json.dumps(line) + "\n")
        return "".join(lines)


def _seconds(model: str, snapshot: "Snapshot", epoch: int) -> str:
    seconds = round(float(snapshot.seconds[epoch]), 4)
    line = {"model": model, "epoch": epoch + 1, "seconds": seconds}
    return json.dumps(line) + "\n"


def differing(names: list[str], here: Config, there: Config) -> str:
    """What the options of these names are, there and here."""
    return "; ".join(
        f"{name} is {getattr(there, name)!r} there and {getattr(here, name)!r} here"
        for name in names
    )


def read_config(folder: str | Path) -> Config:
    """The options of a run.

    Raises:
        FileNotFoundError: there is no run in this folder.
        ValueError: config.json is damaged, or of another version of this program.
    """
    file = Path(folder, "config.json")
    if not file.exists():
        raise FileNotFoundError(f"there is no run in {folder}: it has no config.json")
    values = read_json(file)
    if not isinstance(values, dict):
        raise ValueError(f"{file} is damaged: it holds no options")
    try:
        return Config.from_dict(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error


def read(folder: str | Path) -> dict[str, History]:
    """The complete epochs of every model of a run, and "seed" [S], the seeds' numbers.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: metrics.jsonl or seconds.jsonl is damaged.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    file, seconds_file = Path(folder, "metrics.jsonl"), Path(folder, "seconds.jsonl")
    seconds = read_lines(seconds_file)
    by_model: dict[str, list[dict]] = {}
    for line in read_lines(file):
        model = _get(line, file, "model")
        if not isinstance(model, str):
            raise ValueError(f"{file} is damaged: {model!r} is no model")
        by_model.setdefault(model, []).append(line)
    histories = {}
    for model, lines in by_model.items():
        histories[model] = _history(lines, file)
        epochs = histories[model]["test_accuracy"].shape[1]
        times = [
            _get(line, seconds_file, "seconds")
            for line in seconds
            if line.get("model") == model
        ]
        histories[model]["seconds"] = _numbers(times[:epochs], seconds_file)
    return histories


def _history(lines: list[dict], file: Path) -> History:
    """The lines of one model as arrays, over the epochs that every seed has."""
    table = {}
    for line in lines:
        key = (_get(line, file, "seed"), _get(line, file, "epoch"))
        if not all(type(number) is int for number in key):
            raise ValueError(f"{file} is damaged: seed and epoch {key} are no numbers")
        table[key] = line
    seeds = sorted({seed for seed, _ in table})
    epochs = 0
    while all((seed, epochs + 1) in table for seed in seeds):
        epochs += 1
    names = [n for n in lines[0] if n not in ("model", "seed", "epoch")]
    needed = [f"{p}_{kind}" for p in ("train", "test") for kind in ("loss", "accuracy")]
    missing = [name for name in needed if name not in names]
    if missing:
        raise ValueError(f"{file} is damaged: its lines have no {missing[0]}")
    history: History = {"seed": np.array(seeds)}
    for name in names:
        rows = [
            [_get(table[s, e + 1], file, name) for e in range(epochs)] for s in seeds
        ]
        history[name] = _numbers(rows, file)
        each_layer = name == "lam" or name.startswith("solver")
        if epochs and history[name].ndim != 2 + each_layer:
            raise ValueError(f"{file} is damaged: {name} is not one number an epoch")
    return history


def _numbers(rows: list, file: Path) -> np.ndarray:
    try:
        return np.array(rows, float)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged: its metrics are no numbers") from error


def _get(value: Any, file: Path, *keys: str) -> Any:
    """value[key][key]...; ValueError that names the file if it is not there."""
    try:
        for key in keys:
            value = value[key]
    except (KeyError, TypeError, IndexError):
        raise ValueError(f"{file} is damaged: it has no {'.'.join(keys)}") from None
    return value


def runs_in(folders: Iterable[str | Path]) -> list[Path]:
    """The folders; in place of one that holds runs, such as a sweep's, its runs."""
    found = []
    for folder in map(Path, folders):
        inner = sorted(file.parent for file in folder.glob("*/metrics.jsonl"))
        is_run = (folder / "config.json").exists()
        found += [folder] if is_run or not inner else inner
    return found


class Trained(NamedTuple):
    """A model of a run, as far as it is trained."""

    folder: Path
    model: str
    history: History
    config: Config | None  # None where no file tells, or one of another version


def read_all(folders: Iterable[str | Path]) -> dict[str, Trained]:
    """`read` of several runs together; models without a finished epoch are left out.

    A model that more than one of them has is called by its folder too.
    """
    runs = {Path(folder): read(folder) for folder in folders}
    models = [model for run in runs.values() for model in run]
    trained = {}
    for folder, run in runs.items():
        config = _config_if_readable(folder)
        for model, history in run.items():
            name = model if models.count(model) == 1 else f"{model} ({folder.name})"
            if history["test_accuracy"].shape[1]:
                trained[name] = Trained(folder, model, history, config)
    return trained


def _config_if_readable(folder: Path) -> Config | None:
    try:
        return read_config(folder)
    except (FileNotFoundError, ValueError):
        return None
