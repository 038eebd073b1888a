"""The networks that experiments measure, trained once and shared by all of one size."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from train.config import Config
from train.distributed import processes
from train.engine import compile_cache
from train.errors import Stopped, UserError
from train.experiments.harness.options import Options
from train.experiments.harness.results import Row, not_finite, rounded
from train.runs import folder as folders
from train.runs.files import read_json
from train.runs.session import complete

if TYPE_CHECKING:
    from train.data import Dataset
    from train.runs.ensemble import Ensemble

# Three ways to train lam, beside the fixed lams. Below its bound the solution is
# unique. The paper trains lam without a bound: past it exact solutions take a hundred
# times as long, and some adjoint systems have no good solution. So "free" takes at most
# 20 steps on few points and goes on with what it found. The authors' program takes 20
# steps too, of another solver on other points (see README.md).
TRAINED = {
    "sm": {"model": "sm"},
    "trained": {"model": "ibnn"},
    "free": {
        "model": "ibnn",
        "constraint": "none",
        "retry": False,
        "give_up": 1e6,
        "max_steps": 20,
    },
}


def fixed(lam: float) -> str:
    """The name of the variant whose lam stays as it is."""
    return f"fixed {lam:g}"


def _ignore(text: str) -> None:
    pass


class Study:
    """The trained networks that Options imply; each is trained when it is first needed.

    Args:
        options: the size of the experiment.
        caught: the signals that asked the program to stop, so far.
        say: called with a line of text on the progress of a training.
    """

    def __init__(
        self,
        options: Options,
        caught: Sequence[int] = (),
        say: Callable[[str], None] = _ignore,
    ):
        self.options = options
        self.caught = caught
        self.say = say
        self._ensembles: dict[str, Ensemble | None] = {}

    def stop_if_asked(self, epoch: int) -> None:
        """End a training that leaves no checkpoint, if a signal came.

        Raises:
            Stopped: finished points are saved, and this one is measured again.
        """
        self.say(f"epoch {epoch} of {self.options.epochs}")
        if self.caught:
            raise Stopped("finished points are saved, this one begins again")

    def config(self, variant: str, **changes: Any) -> Config:
        """The training run of a variant: sm, trained, free, or "fixed <lam>"."""
        if variant in TRAINED:
            kind = TRAINED[variant]
        else:
            lam = float(variant.split()[1])
            kind = {"model": "ibnn", "lam": lam, "train_lam": False}
        config = self.options.config(**kind | changes).resolved()
        out = Path(self.options.out, "networks", Path(config.out).name)
        return dataclasses.replace(config, out=str(out))

    def all_variants(self) -> list[str]:
        """sm, trained, free, and every fixed lam."""
        return [*TRAINED, *map(fixed, self.options.fixed_lams)]

    def variants(self) -> list[str]:
        """sm, trained, free, and the best fixed lam < 0.

        The best is that of the highest median accuracy in plain training; the networks
        that this compares are trained if need be.
        """

        def accuracy(lam):
            best = [row["best"] for row in self.outcomes(fixed(lam))]
            return np.nan_to_num(np.median(best))

        return [*TRAINED, fixed(max(self.options.fixed_lams, key=accuracy))]

    def history(self, variant: str, **changes: Any) -> tuple[dict, bool]:
        """The metrics of a variant's training, which is made if need be.

        Returns:
            name -> array [seeds, epochs, ...], as `train.runs.folder.read` has them,
            and whether the loss stayed finite to the end.
        """
        config = self.config(variant, **changes)
        finite = True
        if _readable(folders.RunFolder(config).finished):
            self.say(f"{variant}: trained already")
        else:
            finite = self._train(variant, config)
        compile_cache.release()
        history = _readable(lambda: folders.read(config.out))
        return history.get(config.model, {}), finite

    def _train(self, variant: str, config: Config) -> bool:
        """Train a variant, or what is missing of it; whether its loss stayed finite."""
        try:
            complete(config, self.caught, lambda text: self.say(f"{variant}: {text}"))
        except UserError as error:
            if not isinstance(error.__cause__, FloatingPointError):
                raise
            return False
        return True

    def outcomes(self, variant: str, **changes: Any) -> list[Row]:
        """What a training came to, a row per seed.

        best, last: test accuracies. epoch: of the best. train: the last accuracy on
        the training images. lam: as learned, the mean over the layers. finite: 1 or 0.
        """
        history, finite = self.history(variant, **changes)
        if not history:
            names = ("best", "last", "epoch", "train", "lam")
            return not_finite(self.options.seeds, **dict.fromkeys(names, np.nan))
        rows = []
        for seed in range(self.options.seeds):
            accuracy = history["test_accuracy"][seed]
            lam = history["lam"][seed, -1].mean() if "lam" in history else 0.0
            row = rounded(
                seed=seed,
                best=accuracy.max(),
                last=accuracy[-1],
                epoch=accuracy.argmax() + 1,
                train=history["train_accuracy"][seed, -1],
                lam=lam,
                finite=finite,
            )
            rows.append(row)
        return rows

    def parameters(self, variant: str, **changes: Any) -> int:
        """How many numbers one network of a run trains; the run has at least begun."""
        config = self.config(variant, **changes)
        setup = _readable(lambda: read_json(Path(config.out, "setup.json")))
        return setup["parameters"][config.model]

    @functools.cached_property
    def dataset(self) -> "Dataset":
        """The data of the networks."""
        from train.data import prepare

        return _readable(lambda: prepare(self.config("sm")))

    def ensemble(self, variant: str) -> "Ensemble | None":
        """The trained networks of a variant; None if their loss did not stay finite."""
        from train.runs import ensemble  # imports JAX

        if variant not in self._ensembles:
            _, finite = self.history(variant)
            config, dataset = self.config(variant), self.dataset
            self._ensembles[variant] = (
                _readable(lambda: ensemble.load(config, dataset)) if finite else None
            )
        return self._ensembles[variant]

    def attacked(self) -> tuple[np.ndarray, np.ndarray]:
        """The test images that are attacked, in [0, 1], and their labels."""
        count = self.options.images
        images = self.dataset.test_images[:count]
        return pixels(images), self.dataset.test_labels[:count]


def _readable(read: Callable[[], Any]) -> Any:
    """The result of reading files; what is damaged or absent is a UserError."""
    return processes.ALONE.together(read)


def pixels(images: np.ndarray) -> np.ndarray:
    """Images as the networks take them: float32 in [0, 1]."""
    return images / np.float32(255) if images.dtype == np.uint8 else images
