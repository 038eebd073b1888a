"""Runs on disk: folders, checkpoints, results, and the sessions that make them."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.runs.ensemble import Ensemble


def load(path: str | Path, model: str | None = None) -> "Ensemble":
    """The trained networks of a run's folder, vmapped over its seeds.

    >>> ensemble = train.runs.load("runs/a", model="ibnn")  # doctest: +SKIP
    >>> ensemble(images).shape  # doctest: +SKIP
    (5, 100, 10)

    Args:
        model: "sm", "ibnn" or "nemon"; may be left out where the run has only one.

    Raises:
        FileNotFoundError: there is no run there, or no checkpoint of the model.
        ValueError: the model is not in the run, or the run is damaged.
    """
    from train.runs.ensemble import load_run  # late: tables and plots need no JAX

    return load_run(path, model)
