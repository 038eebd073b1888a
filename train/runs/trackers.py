"""Where metrics are sent besides the run's folder: one interface, lazy imports."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from train.errors import UserError


class Tracker:
    """Receives a run's options and the metrics of every epoch; this one drops them."""

    def start(self, folder: Path, config: dict) -> None:
        """A run begins or goes on. UserError if the tracker's package is missing."""

    def log(self, model: str, epoch: int, metrics: dict[str, float]) -> None:
        """Metrics of one model after this epoch, each "seed-<i>/<name>" or a median."""

    def finish(self) -> None:
        """The run ended, finished or not."""


class Guarded(Tracker):
    """A tracker whose failure does not end the run: it is said once, and left out.

    Only what is wrong at the start ends it.
    """

    def __init__(self, tracker: Tracker, say: Callable[[str], None]):
        self._tracker, self._say = tracker, say

    def start(self, folder: Path, config: dict) -> None:
        self._tracker.start(folder, config)

    def log(self, model: str, epoch: int, metrics: dict[str, float]) -> None:
        self._try(lambda: self._tracker.log(model, epoch, metrics))

    def finish(self) -> None:
        self._try(self._tracker.finish)

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # whatever another package raises
            name = type(self._tracker).__name__
            self._say(f"{name} failed, and gets no more of this run: {error}")
            self._tracker = Tracker()


class TensorBoard(Tracker):
    """Event files in <run>/tensorboard, one folder a model; written by tensorboardX."""

    def start(self, folder: Path, config: dict) -> None:
        self._module = _import("tensorboardX", "tensorboardX")
        self._folder, self._writers = folder / "tensorboard", {}

    def log(self, model: str, epoch: int, metrics: dict[str, float]) -> None:
        if model not in self._writers:
            # Epochs after the last checkpoint are trained again when a run that was
            # killed goes on: purge_step hides what was logged of them before.
            self._writers[model] = self._module.SummaryWriter(
                str(self._folder / model), purge_step=epoch
            )
        for name, value in metrics.items():
            self._writers[model].add_scalar(name, value, epoch)
        self._writers[model].flush()

    def finish(self) -> None:
        for writer in self._writers.values():
            writer.close()


class MLflow(Tracker):
    """An MLflow run, in $MLFLOW_TRACKING_URI or in <run>/mlflow."""

    def start(self, folder: Path, config: dict) -> None:
        self._module = _import("mlflow", "mlflow")
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            database = (folder / "mlflow.db").absolute()
            self._module.set_tracking_uri(f"sqlite:///{database}")
        self._module.start_run(run_name=folder.name)
        self._module.log_params(config)

    def log(self, model: str, epoch: int, metrics: dict[str, float]) -> None:
        named = {f"{model}/{name}": value for name, value in metrics.items()}
        self._module.log_metrics(named, step=epoch)

    def finish(self) -> None:
        self._module.end_run()


class WandB(Tracker):
    """A Weights & Biases run in <run>/wandb; offline unless $WANDB_MODE is set."""

    def start(self, folder: Path, config: dict) -> None:
        module = _import("wandb", "wandb")
        mode = os.environ.get("WANDB_MODE", "offline")
        self._run = module.init(
            project="ibnn_jax",
            name=folder.name,
            dir=str(folder),
            config=config,
            mode=mode,
        )

    def log(self, model: str, epoch: int, metrics: dict[str, float]) -> None:
        named = {f"{model}/{name}": value for name, value in metrics.items()}
        # Two models have the same epochs, and W&B's own step may not go back.
        self._run.log(named | {"epoch": epoch})

    def finish(self) -> None:
        self._run.finish()


TRACKERS = {
    "none": Tracker,
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


def metrics_of(history: dict[str, np.ndarray], epoch: int, first_seed: int):
    """The numbers of one epoch: each seed's, and their median."""
    metrics = {}
    for name, values in history.items():
        now = values[:, epoch - 1].reshape(len(values), -1)
        for layer in range(now.shape[1]):
            called = name if now.shape[1] == 1 else f"{name}/layer-{layer + 1}"
            metrics[f"median/{called}"] = float(np.median(now[:, layer]))
            for row, value in enumerate(now[:, layer]):
                metrics[f"seed-{first_seed + row}/{called}"] = float(value)
    return metrics


def _import(module: str, package: str):
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"--tracker needs the package {package}: pip install {package}"
        ) from error
