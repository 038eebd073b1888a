"""The networks of a run, each in a folder that `ibnn_jax.load` reads.

models/<model>/seed-<i>/       as it was at its lowest validation (or test) loss
models/<model>/seed-<i>/last/  as it was after the last epoch
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import jax

import ibnn_jax
from train.config import Config
from train.runs.files import writing

if TYPE_CHECKING:
    from train.engine.loop import Snapshot
    from train.engine.program import EnsembleProgram


def save_networks(
    config: Config, program: "EnsembleProgram", snapshot: "Snapshot"
) -> None:
    """Save the best and the last network of every seed of a model.

    Raises:
        OSError: they cannot be written.
    """
    folder = Path(config.out or ".", "models", config.model)
    shutil.rmtree(folder, ignore_errors=True)
    last = (snapshot.state.params, snapshot.state.rest)
    for row in range(config.seeds):
        place = folder / f"seed-{config.first_seed + row}"
        # The best one first: it may not be written over what it does not know.
        for weights, where in ((snapshot.best, place), (last, place / "last")):
            with writing(where):
                ibnn_jax.save(program.network(*_of_seed(weights, row)), where)


def _of_seed(weights: tuple, row: int) -> tuple:
    return jax.tree.map(lambda x: x[row], weights)
