"""The command `python -m train.experiments`: measure, draw, say what came out."""

import dataclasses
import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from train.command import run_command
from train.distributed import processes
from train.engine import compile_cache
from train.errors import Stopped, UserError
from train.experiments.harness import options
from train.experiments.harness.options import Options
from train.experiments.harness.results import Results, label
from train.experiments.harness.show import show
from train.experiments.harness.study import Study
from train.runs.files import write_json
from train.runs.session import PACKAGES, check_packages, environment


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, as `python -m train` does."""
    names, chosen = options.parse(arguments)
    return run_command(lambda caught: [run(name, chosen, caught) for name in names])


def run(name: str, chosen: Options, caught: Sequence[int] = ()) -> Path:
    """One experiment, begun or gone on with; returns its folder.

    Args:
        caught: the signals that asked the program to stop, so far.

    Raises:
        UserError: the folder cannot be written, or is damaged; a package is missing.
        Stopped: a signal came; every finished point is saved.
    """
    processes.ALONE.together(lambda: check_packages(*PACKAGES))
    experiment = importlib.import_module(f"train.experiments.{name}")
    folder = chosen.folder(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error}") from error
    print(f"{experiment.TITLE}: {folder}", flush=True)
    finished = folder / "about.json"
    if not finished.exists():
        with tqdm(desc=name, unit="point", dynamic_ncols=True) as bar:
            study = Study(chosen, caught, lambda text: bar.set_postfix_str(text[:100]))
            _measure(experiment, study, Results(folder), bar)
        write_json(finished, {"experiment": name} | _about(chosen, folder))
    print(show(name, folder), flush=True)
    return folder


def _measure(experiment: ModuleType, study: Study, results: Results, bar: tqdm) -> None:
    """Measure every point that the results do not hold yet."""
    folder = results.path.parent
    name = experiment.__name__.split(".")[-1]
    points = experiment.points(study)
    bar.reset(total=len(points))
    for point in points:
        bar.set_description_str(f"{name} {label(point)}")
        if not results.has(point):
            start = time.monotonic()
            rows = experiment.measure(study, point)
            if study.caught:
                saved = sum(map(results.has, points))
                raise Stopped(f"{saved} of {len(points)} points are saved in {folder}")
            results.add(point, rows)
            with open(folder / "seconds.csv", "a") as file:
                file.write(f"{label(point)},{time.monotonic() - start:.1f}\n")
            compile_cache.release()
        bar.update()


def _about(chosen: Options, folder: Path) -> dict[str, Any]:
    """Options, time, versions and device of an experiment."""
    return {
        "options": dataclasses.asdict(chosen),
        "seconds": _seconds(folder / "seconds.csv"),
    } | environment()


def _seconds(path: Path) -> float | None:
    """The sum of the times in seconds.csv; None where the file does not tell."""
    try:
        lines = path.read_text().splitlines()
        return round(sum(float(line.rsplit(",", 1)[1]) for line in lines), 1)
    except (OSError, LookupError, ValueError):
        return None
