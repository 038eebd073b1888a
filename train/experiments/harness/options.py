"""What every experiment can be told on the command line."""

import argparse
import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.config import Config

NAMES = (
    "boundary2d",
    "less_data",
    "pgd",
    "pixle",
    "expressivity",
    "learning_speed",
    "memorization",
    "transfer",
    "theory",
    "multistability",
    "nemon_function",
    "nemon_mnist",
)
# Budgets under which all experiments together take about twenty minutes on two cores.
# They show that everything runs, no more.
QUICK = {
    "seeds": 2,
    "epochs": 3,
    "train_fraction": 0.03,
    "test_fraction": 0.1,
    "images": 40,
    "fixed_lams": (-0.1,),
    "quick": True,
}


def option(default: Any, help: str, **argument: Any) -> Any:
    """A field of Options; `argument` goes to argparse's add_argument."""
    return dataclasses.field(
        default=default, metadata={"help": help, "argument": argument}
    )


@dataclasses.dataclass(frozen=True)
class Options:
    """The size of an experiment.

    Raises:
        ValueError: a value cannot be; the message says what would be right.
    """

    dataset: str = option("fashion_mnist", "as in python -m train")
    data_dir: str | None = option(None, "where TFDS data sets lie")
    seeds: int = option(5, "networks per point", type=int)
    epochs: int = option(80, "epochs of each training", type=int)
    train_fraction: float = option(
        1.0, "share of the training images used in every network", type=float
    )
    test_fraction: float = option(
        1.0, "share of the test images used by every network", type=float
    )
    layers: int | None = option(
        None, "L of UCN(L, C); default: the paper's for the data set", type=int
    )
    channels: int | None = option(
        None,
        "C of UCN(L, C); default: the paper's for the experiment and the data set; "
        "expressivity has its own",
        type=int,
    )
    images: int = option(
        1000, "test images that are attacked or analysed: the first ones", type=int
    )
    fixed_lams: tuple[float, ...] = option(
        (-0.02, -0.1, -0.5),
        "negative lam, of which the best is the variant 'fixed'",
        type=float,
        nargs="+",
        metavar="LAM",
    )
    quick: bool = option(
        False,
        "tiny budgets and fewer points, to see that everything runs",
        action="store_true",
    )
    out: str = option("runs/experiments", "folder of results and networks")

    def __post_init__(self):
        if self.images < 1:
            raise ValueError(f"images must be at least 1, not {self.images}")
        if not self.fixed_lams or not all(-math.inf < v < 0 for v in self.fixed_lams):
            raise ValueError(
                "fixed_lams must be negative numbers, at least one, not "
                f"{self.fixed_lams}"
            )
        if not self.out:
            raise ValueError("out must be the name of a folder, not ''")
        self.config()

    def config(self, **changes: Any) -> Config:
        """A training run of this size."""
        names = (
            "dataset",
            "data_dir",
            "seeds",
            "epochs",
            "train_fraction",
            "test_fraction",
            "layers",
            "channels",
        )
        same = {name: getattr(self, name) for name in names}
        return Config(**same | {"quiet": True, "as_paper": True} | changes)

    def folder(self, name: str) -> Path:
        """Where the results of an experiment go: other numbers, another folder."""
        numbers = {
            key: value
            for key, value in dataclasses.asdict(self).items()
            if key not in ("data_dir", "out")
        }
        text = json.dumps(numbers, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return Path(self.out, f"{name}-{Path(self.dataset).stem}-{digest}")


def parse(arguments: Sequence[str] | None = None) -> tuple[tuple[str, ...], Options]:
    """Command-line arguments -> names of experiments, Options.

    Raises:
        SystemExit: an argument is wrong; one line on stderr says what would be right.
    """
    parser = _parser()
    values = vars(parser.parse_args(arguments))
    name = values.pop("name")
    given = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in values.items()
        if value is not None
    }
    budget = QUICK if given.get("quick") else {}
    try:
        chosen = Options(**budget | given)
    except ValueError as error:
        parser.error(str(error))
    return (NAMES if name == "all" else (name,)), chosen


def _parser() -> argparse.ArgumentParser:
    """An option for every field of Options; what is not given is None."""
    parser = argparse.ArgumentParser(
        prog="python -m train.experiments",
        allow_abbrev=False,
        description="Run an experiment of the paper, go on with one that was stopped, "
        "or show one that is finished.",
    )
    parser.add_argument(
        "name", choices=(*NAMES, "all"), help="the experiment, or all of them"
    )
    for field in dataclasses.fields(Options):
        text = field.metadata["help"]
        if field.default not in (None, False):
            default = field.default
            words = map(str, default if isinstance(default, tuple) else (default,))
            text += f" (default: {' '.join(words)})"
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            default=None,
            help=text,
            **field.metadata["argument"],
        )
    return parser
