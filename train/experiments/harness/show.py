"""Figure and verdict of an experiment from its results.csv alone, without JAX."""

import importlib
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import matplotlib

from train.errors import UserError
from train.experiments.harness import results
from train.experiments.harness.options import NAMES
from train.runs.files import write_text

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402, the backend comes first

WIDTH = 120  # columns of a verdict


def show(name: str, folder: str | Path) -> str:
    """Draw figure.png and figure.pdf, write verdict.txt, and return the verdict.

    Raises:
        UserError: results.csv is absent, damaged or incomplete.
    """
    experiment = importlib.import_module(f"train.experiments.{name}")
    path = Path(folder, "results.csv")
    rows = results.read(path)
    try:
        text = f"{experiment.verdict(rows)} Paper: {experiment.PAPER}"
        if not Path(folder, "about.json").exists():  # written when all is measured
            text = f"Not finished, some points are missing. {text}"
        figure = _draw(experiment, rows)
    except (LookupError, ValueError, StopIteration) as error:
        raise UserError(
            f"{path} lacks rows or columns that the figure of {name} needs "
            f"({type(error).__name__}: {error}); the command that began it goes on"
        ) from error
    _save(figure, Path(folder))
    text = textwrap.fill(text, WIDTH)
    write_text(Path(folder, "verdict.txt"), text + "\n")
    return text


def main(folders: Sequence[str]) -> None:
    """Show the experiments of these folders.

    Raises:
        SystemExit: with one line that says what is wrong.
    """
    if not folders:
        raise SystemExit("usage: python -m train.experiments.show FOLDER [FOLDER ...]")
    try:
        for folder in map(Path, folders):
            print(show(_name(folder), folder))
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


def _name(folder: Path) -> str:
    """The experiment that a folder holds: as about.json says, else as it is called."""
    if not (folder / "results.csv").exists():
        raise UserError(f"{folder} holds no results.csv")
    about = folder / "about.json"
    try:
        name = json.loads(about.read_text())["experiment"]
    except FileNotFoundError:
        name = folder.name.split("-")[0]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{about} is damaged ({error}); delete it, and run the experiment again"
        ) from error
    if name not in NAMES:
        raise UserError(
            f"{folder} is not the folder of an experiment: {name!r} is none of "
            f"{', '.join(NAMES)}"
        )
    return name


def _draw(experiment: ModuleType, rows: list[results.Row]) -> plt.Figure:
    size = getattr(experiment, "SIZE", (7, 4.5))
    figure = plt.figure(figsize=size, layout="constrained")
    try:
        experiment.draw(figure, rows)
    except Exception:
        plt.close(figure)
        raise
    figure.suptitle(experiment.TITLE, fontsize=11)
    return figure


def _save(figure: plt.Figure, folder: Path) -> None:
    # A date in the file would make every drawing another one.
    figure.savefig(folder / "figure.png", dpi=130)
    figure.savefig(folder / "figure.pdf", metadata={"CreationDate": None})
    plt.close(figure)
