"""What every experiment can be told on the command line."""

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path

from train import config as configs

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
)
# Budgets under which all experiments together take about twenty minutes on two cores. They show that everything runs, no more.
QUICK = {
    "seeds": 2,
    "epochs": 3,
    "train_fraction": 0.03,
    "test_fraction": 0.1,
    "images": 40,
    "fixed_lams": (-0.1,),
    "quick": True,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """The size of an experiment; ValueError for what cannot be."""

    dataset: str = "fashion_mnist"
    data_dir: str | None = None
    seeds: int = 5
    epochs: int = 80
    train_fraction: float = (
        1.0  # of the training images, in every network of the experiment
    )
    test_fraction: float = 1.0
    layers: int | None = None  # of UCN(layers, channels); the paper's for the data set
    channels: int | None = None
    images: int = 1000  # test images that are attacked or analysed: the first ones
    fixed_lams: tuple = (
        -0.02,
        -0.1,
        -0.5,
    )  # of which the best one is the variant "fixed"
    quick: bool = False  # fewer points
    out: str = "runs/experiments"

    def __post_init__(self):
        if self.images < 1:
            raise ValueError(f"images must be at least 1, not {self.images}")
        if not self.fixed_lams or max(self.fixed_lams) >= 0:
            raise ValueError(
                f"fixed_lams must be negative numbers, at least one, not {self.fixed_lams}"
            )
        self.config()

    def config(self, **changes):
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
        return configs.Config(**same | {"quiet": True} | changes)

    def folder(self, name):
        """Where an experiment's results go: other numbers, another folder."""
        numbers = {
            k: v
            for k, v in dataclasses.asdict(self).items()
            if k not in ("data_dir", "out")
        }
        digest = hashlib.sha256(
            json.dumps(numbers, sort_keys=True).encode()
        ).hexdigest()[:8]
        return Path(self.out, f"{name}-{Path(self.dataset).stem}-{digest}")


def parse(arguments=None):
    """Command-line arguments -> names of experiments, Options."""
    default = Options()
    parser = argparse.ArgumentParser(
        prog="python -m train.experiments",
        allow_abbrev=False,
        description="Run an experiment of the paper, or go on with it, or show it if it is finished.",
    )
    parser.add_argument(
        "name", choices=(*NAMES, "all"), help="the experiment, or all of them"
    )
    parser.add_argument(
        "--dataset",
        default=default.dataset,
        help=f"as in python -m train (default: {default.dataset})",
    )
    parser.add_argument("--data-dir", default=None, help="where TFDS data sets lie")
    parser.add_argument(
        "--seeds", type=int, help=f"networks per point (default: {default.seeds})"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        help=f"epochs of each training (default: {default.epochs})",
    )
    parser.add_argument(
        "--train-fraction",
        type=float,
        help="share of the training images used in every network (default: 1.0)",
    )
    parser.add_argument(
        "--test-fraction",
        type=float,
        help="share of the test images used by every network (default: 1.0)",
    )
    parser.add_argument(
        "--layers",
        type=int,
        help="L of UCN(L, C) (default: the paper's for the data set)",
    )
    parser.add_argument(
        "--channels",
        type=int,
        help="C of UCN(L, C) (default: the paper's for the data set; expressivity has its own)",
    )
    parser.add_argument(
        "--images",
        type=int,
        help=f"test images attacked or analysed (default: {default.images})",
    )
    parser.add_argument(
        "--fixed-lams",
        type=float,
        nargs="+",
        metavar="LAM",
        help=f"negative lam, of which the best is the variant 'fixed' (default: {' '.join(map(str, default.fixed_lams))})",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny budgets and fewer points, to see that everything runs",
    )
    parser.add_argument(
        "--out",
        default=default.out,
        help=f"folder of results and networks (default: {default.out})",
    )
    values = vars(parser.parse_args(arguments))
    name = values.pop("name")
    given = {
        k: tuple(v) if isinstance(v, list) else v
        for k, v in values.items()
        if v is not None
    }
    try:
        return (NAMES if name == "all" else (name,)), Options(
            **(QUICK if values["quick"] else {}) | given
        )
    except ValueError as error:
        parser.error(str(error))
