"""Figure and verdict of an experiment from its results.csv alone, without JAX.

python -m train.experiments.show FOLDER [FOLDER ...]
"""

import importlib
import sys
import textwrap
from pathlib import Path

import matplotlib

from train.experiments import results
from train.runs.folder import write_text

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402, the backend comes first


def show(name, folder):
    """Draw figure.png and figure.pdf, write verdict.txt, and return the verdict."""
    experiment = importlib.import_module(f"train.experiments.{name}")
    rows = results.read(Path(folder, "results.csv"))
    figure = plt.figure(
        figsize=getattr(experiment, "SIZE", (7, 4.5)), layout="constrained"
    )
    experiment.draw(figure, rows)
    figure.suptitle(experiment.TITLE, fontsize=11)
    for kind in ("png", "pdf"):
        # A date in the file would make every drawing another one.
        figure.savefig(
            Path(folder, f"figure.{kind}"),
            dpi=130,
            metadata={"CreationDate": None} if kind == "pdf" else None,
        )
    plt.close(figure)
    text = textwrap.fill(f"{experiment.verdict(rows)} Paper: {experiment.PAPER}", 120)
    write_text(Path(folder, "verdict.txt"), text + "\n")
    return text


def main(folders=None):
    folders = folders or sys.argv[1:]
    if not folders:
        sys.exit("usage: python -m train.experiments.show FOLDER [FOLDER ...]")
    for folder in map(Path, folders):
        if not (folder / "results.csv").exists():
            sys.exit(f"{folder} holds no results.csv")
        print(show(folder.name.split("-")[0], folder))


if __name__ == "__main__":
    main()
