"""The networks that experiments measure: trained once, kept in one folder, shared by all experiments of one size."""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from train.engine import compile_cache
from train.errors import UserError
from train.runs import folder as folders
from train.runs.session import complete

# The paper trains lam without a bound; below its bound the solution is unique; lam < 0 is what the theory of robustness assumes.
# Past it exact solutions take a hundred times as long, and some adjoint systems have none that is good: like the authors' program, the
# free variant takes 20 steps on few points and goes on with what was found.
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


def fixed(lam):
    """The name of the variant with a lam that is not trained."""
    return f"fixed {lam:g}"


class Study:
    """Options, and the trained networks they imply. caught: the signals that ask to stop; say(text) is told of progress."""

    def __init__(self, options, caught=(), say=lambda text: None):
        self.options, self.caught, self.say = options, caught, say
        self._ensembles = {}

    def config(self, variant, **changes):
        """The training run of a variant: sm, trained, free, or "fixed <lam>"."""
        kind = TRAINED.get(variant) or {
            "model": "ibnn",
            "lam": float(variant.split()[1]),
            "train_lam": False,
        }
        config = self.options.config(**kind | changes).resolved()
        return dataclasses.replace(
            config, out=str(Path(self.options.out, "networks", Path(config.out).name))
        )

    def all_variants(self):
        return [*TRAINED, *map(fixed, self.options.fixed_lams)]

    def variants(self):
        """sm, trained, free, and the fixed lam < 0 with the best median accuracy in plain training, which is trained if need be."""

        def best(lam):
            return np.nan_to_num(
                np.median([row["best"] for row in self.outcomes(fixed(lam))])
            )

        return [*TRAINED, fixed(max(self.options.fixed_lams, key=best))]

    def history(self, variant, **changes):
        """`folder.read` of a run, trained if need be, and whether its loss stayed finite to the end."""
        config = self.config(variant, **changes)
        try:
            folder, finite = (
                complete(
                    config, self.caught, lambda text: self.say(f"{variant}: {text}")
                ).path,
                True,
            )
        except UserError as error:
            if not isinstance(error.__cause__, FloatingPointError):
                raise
            folder, finite = Path(config.out), False
        compile_cache.release()
        return folders.read(folder).get(config.model, {}), finite

    def outcomes(self, variant, **changes):
        """A row per seed: best, last (test accuracies), epoch (of the best), train (last), lam (learned, mean over layers), finite."""
        history, finite = self.history(variant, **changes)
        rows = []
        for i in range(self.options.seeds):
            row = {
                "seed": i,
                "best": np.nan,
                "last": np.nan,
                "epoch": np.nan,
                "train": np.nan,
                "lam": np.nan,
                "finite": int(finite),
            }
            if history:
                accuracy = history["test_accuracy"][i]
                row |= {
                    "best": accuracy.max(),
                    "last": accuracy[-1],
                    "epoch": accuracy.argmax() + 1,
                }
                row |= {
                    "train": history["train_accuracy"][i, -1],
                    "lam": history["lam"][i, -1].mean() if "lam" in history else 0.0,
                }
            rows.append({k: round(float(v), 6) for k, v in row.items()})
        return rows

    def parameters(self, variant, **changes):
        """Trained numbers in one network of a run that is finished or begun."""
        config = self.config(variant, **changes)
        return folders.read_json(Path(config.out, "setup.json"))["parameters"][
            config.model
        ]

    @functools.cached_property
    def dataset(self):
        """The data of the networks."""
        from train.engine import loop

        return loop.prepare(self.config("sm"))

    def ensemble(self, variant):
        """The trained networks of a variant (`train.runs.ensemble.Ensemble`), read once; None if its training did not stay finite."""
        from train.runs import ensemble

        if variant not in self._ensembles:
            _, finite = self.history(variant)
            self._ensembles[variant] = (
                ensemble.load(self.config(variant), self.dataset) if finite else None
            )
        return self._ensembles[variant]

    def attacked(self):
        """The test images that are attacked, in [0, 1], and their labels."""
        count = self.options.images
        return pixels(self.dataset.test_images[:count]), self.dataset.test_labels[
            :count
        ]


def pixels(images):
    """Images as the networks take them, float32 in [0, 1]."""
    return images / np.float32(255) if images.dtype == np.uint8 else images
