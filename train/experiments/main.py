"""The command `python -m train.experiments`: measure what is missing, then the figure and the verdict."""

import dataclasses
import importlib
import time

from tqdm import tqdm

from train.command import run_command
from train.engine import compile_cache
from train.errors import Stopped
from train.experiments import options, show
from train.experiments.results import Results, label
from train.experiments.study import Study
from train.runs.folder import write_json
from train.runs.session import environment


def main(arguments=None):
    """Run the command line; returns the exit status, as `python -m train` does."""
    names, chosen = options.parse(arguments)
    return run_command(lambda caught: [run(name, chosen, caught) for name in names])


def run(name, chosen, caught=()):
    """One experiment: its folder, with every point measured, the figure drawn and the verdict written."""
    experiment = importlib.import_module(f"train.experiments.{name}")
    folder = chosen.folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{experiment.TITLE}: {folder}", flush=True)
    finished = folder / "about.json"
    if not finished.exists():
        with tqdm(desc=name, unit="point", dynamic_ncols=True) as bar:
            study = Study(chosen, caught, lambda text: bar.set_postfix_str(text[:100]))
            _measure(experiment, study, Results(folder), bar)
        write_json(finished, {"experiment": name} | _about(chosen, folder))
    print(show.show(name, folder), flush=True)
    return folder


def _measure(experiment, study, results, bar):
    points = experiment.points(study)
    bar.reset(total=len(points))
    for point in points:
        bar.set_description_str(f"{experiment.__name__.split('.')[-1]} {label(point)}")
        if not results.has(point):
            start = time.monotonic()
            rows = experiment.measure(study, point)
            if study.caught:
                raise Stopped(
                    f"{sum(map(results.has, points))} of {len(points)} points are saved in {results.path.parent}"
                )
            results.add(point, rows)
            with open(results.path.parent / "seconds.csv", "a") as file:
                file.write(f"{label(point)},{time.monotonic() - start:.1f}\n")
            compile_cache.release()
        bar.update()


def _about(chosen, folder):
    lines = (folder / "seconds.csv").read_text().splitlines()
    seconds = round(sum(float(line.rsplit(",", 1)[1]) for line in lines), 1)
    return {
        "options": dataclasses.asdict(chosen),
        "seconds": seconds,
    } | environment()
