"""Training an ensemble: warm-up and epochs; plain arrays out, no files."""

import dataclasses
import time

import jax
import numpy as np
from jax.sharding import Mesh

from train.config import Config
from train.data import Dataset, prepare
from train.distributed import sharding
from train.engine import program as programs
from train.engine.objective import paces

__all__ = [
    "NonFiniteLoss",
    "Observer",
    "Snapshot",
    "batch_size",
    "blank",
    "parameters",
    "prepare",
    "train",
]

SOLVER_METRICS = (
    "solver_steps",
    "solver_steps_max",
    "solver_converged",
    "solver_residual_max",
)


class NonFiniteLoss(FloatingPointError):
    """A loss became NaN or infinite; the message names the seed and the step."""


@dataclasses.dataclass
class Snapshot:
    """All there is of a run after some epochs, in numpy.

    A checkpoint holds one, and `train` returns one.

    Attributes:
        epoch: epochs finished.
        state: programs.State, arrays with a leading axis of S seeds.
        best: (params, rest) of every seed as they were at its lowest loss on the
            validation images, or on the test images where there are none.
        best_loss: that loss [S].
        history: name -> [S, epochs] or [S, epochs, n], float64, NaN where to come:
            train_loss, train_accuracy (both over the epoch's steps, as the weights
            changed), test_loss, test_accuracy; val_loss, val_accuracy with validation
            images; for IBNN lam, solver_steps, solver_steps_max, solver_converged,
            solver_residual_max, of the test images; for NEMON the same but lam. Where
            certified_eps is given test_certified, and test_loss and val_loss are those
            of the worst logits.
        seconds: of each epoch [epochs], compiling and evaluation included.
    """

    epoch: int
    state: programs.State
    best: tuple
    best_loss: np.ndarray
    history: dict[str, np.ndarray]
    seconds: np.ndarray


class Observer:
    """What `train` tells and asks as it goes; subclasses override what they use."""

    def resume(self, template: Snapshot) -> Snapshot | None:
        """A Snapshot of the template's structure to go on from, or None."""
        return None

    def stage(self, text: str) -> None:
        """What is done next and takes a while without a sign: compiling, warm-up."""

    def epoch_done(self, snapshot: Snapshot) -> None:
        """An epoch is finished."""

    def poll(self) -> None:
        """Called again and again while the device works; may raise to stop."""


def train(
    config: Config, dataset: Dataset, observer: Observer | None = None
) -> Snapshot:
    """Train config.seeds networks of one kind; returns the last Snapshot.

    The weights and the data order of seed number i follow from
    fold_in(key(config.seed), i) alone, and are the same for both models: a seed has the
    same result alone or among others, and the two models are paired.

    Seeds spread over the devices there are (`sharding.make_mesh`); results do not
    depend on how many. Where jax.distributed has brought several processes together,
    each calls this with the same arguments, its observer resumes from the same
    Snapshot, and each trains its share and gets the whole Snapshot.

    Args:
        config: its model is "sm", "ibnn" or "nemon".

    Raises:
        ValueError: the config cannot be trained.
        NonFiniteLoss: training diverged.
    """
    config = config.resolved()
    if config.model == "both":
        raise ValueError("train() trains one model, 'sm', 'ibnn' or 'nemon', not both")
    if config.x64 and not jax.config.jax_enable_x64:
        raise ValueError(
            "x64 needs jax.config.update('jax_enable_x64', True) before anything is "
            "computed"
        )
    return Training(config, dataset, observer or Observer()).run()


def parameters(config: Config, dataset: Dataset, model: str) -> int:
    """Number of trained parameters of one network."""
    program = programs.build(
        config.resolved(), dataset.image_shape, dataset.classes, model != "sm"
    )
    return program.parameters


def batch_size(config: Config, dataset: Dataset) -> int:
    """Images in a batch; ValueError where devices cannot share them evenly."""
    batch = min(config.batch_size, len(dataset.train_labels))
    if batch % config.data_devices:
        raise ValueError(
            f"a batch of {batch} images does not divide evenly over "
            f"data_devices={config.data_devices}"
        )
    return batch


class Training:
    """A run of one model: data on the devices, keys, and the loop over epochs."""

    def __init__(self, config: Config, dataset: Dataset, observer: Observer):
        self.config, self.dataset, self.observer = config, dataset, observer
        self.mesh = sharding.make_mesh(
            config.seeds, config.devices, config.data_devices
        )
        self.program = self._program(config.model != "sm")
        self.init_keys, self.warmup_keys, self.order_keys = seed_keys(config, self.mesh)
        self.batch = batch_size(config, dataset)
        self.train_data = self._on_devices(dataset.part("train"))
        self.eval_data = self._on_devices(evaluation_data(dataset))
        self._called = set()

    def run(self) -> Snapshot:
        """Train to the last epoch, from the start or from where the observer says."""
        template = blank(self.config, self.program, self.dataset.has_validation)
        snapshot = self.observer.resume(template)
        if snapshot:
            state = sharding.put(snapshot.state, self.mesh, spread=True)
        else:
            snapshot, state = template, self.warmed_up()
        pace = paces(self.config, self.config.epochs)
        for epoch in range(snapshot.epoch, self.config.epochs):
            start = time.perf_counter()
            state, losses, correct, found = self.epoch(
                self.program, state, pace[epoch], self.order_keys, epoch
            )
            metrics = self.metrics(found, epoch)
            metrics["train_loss"] = losses.mean(1)
            metrics["train_accuracy"] = correct / (losses.shape[1] * self.batch)
            arrays = sharding.get(state, self.config.seeds)
            snapshot = _next(snapshot, arrays, metrics, time.perf_counter() - start)
            self.observer.epoch_done(snapshot)
        return snapshot

    def warmed_up(self) -> programs.State:
        """Initial values, and the weights of the standard twin after the warm-up.

        The twin has its own momentum, and runs the first rates of a schedule of its own
        that is as long as the training's.
        """
        state = self.program.init(self.init_keys)
        if not self.config.warmup_epochs:
            return state
        program = self._program(implicit=False)
        twin = program.init(self.init_keys)
        pace = paces(self.config, max(self.config.epochs, self.config.warmup_epochs))
        for epoch in range(self.config.warmup_epochs):
            twin, *_ = self.epoch(
                program, twin, pace[epoch], self.warmup_keys, epoch, "warm-up epoch"
            )
        return self.program.adopt(state, twin)

    def epoch(self, program, state, pace, keys, epoch: int, stage: str = "epoch"):
        """(state, losses [S, steps], correct [S], what its evaluation found) after one
        epoch of this program.
        """
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, epoch)
        if program not in self._called:
            self._called.add(program)
            self.observer.stage(f"compiling {stage} {epoch + 1}")
        state, losses, correct, found = program.epoch(
            state, pace, keys, self.train_data, self.eval_data
        )
        losses, correct = self._wait(losses), self._wait(correct)
        self._check(losses, f"the training loss in {stage} {epoch + 1}", step=True)
        return state, losses.astype(np.float64), correct, found

    def metrics(self, found: dict, epoch: int) -> dict[str, np.ndarray]:
        """Those of `Snapshot.history` on test and validation images."""
        found = {name: self._wait(value) for name, value in found.items()}
        counts = {"test": len(self.dataset.test_labels)}
        if self.dataset.has_validation:
            counts["val"] = len(self.dataset.val_labels)
        for part, count in counts.items():
            what = f"the {part} loss after epoch {epoch + 1}"
            self._check(found[f"{part}_loss"][:, None], what)
            found[f"{part}_accuracy"] = found[f"{part}_correct"] / count
        return found

    def _program(self, implicit: bool) -> programs.EnsembleProgram:
        dataset = self.dataset
        return programs.build(
            self.config, dataset.image_shape, dataset.classes, implicit, self.mesh
        )

    def _on_devices(self, arrays):
        return sharding.put(arrays, self.mesh, spread=False)

    def _wait(self, array) -> np.ndarray:
        """The array, in numpy; the observer is polled until it is ready."""
        pause = 0.001
        while not array.is_ready():
            self.observer.poll()
            time.sleep(pause)
            pause = min(2 * pause, 0.005)
        self.observer.poll()
        return sharding.get(array, self.config.seeds)

    def _check(self, values: np.ndarray, what: str, step: bool = False) -> None:
        """NonFiniteLoss if one of the values [S, steps] is not finite."""
        wrong = ~np.isfinite(values)
        if not wrong.any():
            return
        column = int(wrong.any(0).argmax())  # the earliest step of any seed
        row = int(wrong[:, column].argmax())
        where = f", step {column + 1} of {values.shape[1]}" if step else ""
        raise NonFiniteLoss(
            f"{what}{where} is {values[row, column]} for seed "
            f"{self.config.first_seed + row} ({self.config.model}). A lower --lr-max, "
            "gradient clipping (--clip-norm 1) or a bound on lam (--constraint unique) "
            "may help."
        )


def seed_keys(config: Config, mesh: Mesh | None = None):
    """Keys [S] of the initial values, the warm-up's order and the training's order."""
    first = config.first_seed
    numbers = np.arange(first, first + config.seeds, dtype=np.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.key(config.seed), sharding.put(numbers, mesh, spread=True)
    )
    fold_in = jax.vmap(jax.random.fold_in, (0, None))
    return tuple(fold_in(keys, stream) for stream in range(3))


def evaluation_data(dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images, labels, is_test) of the test and, after them, the validation images."""
    images = np.concatenate([dataset.test_images, dataset.val_images])
    labels = np.concatenate([dataset.test_labels, dataset.val_labels])
    return images, labels, np.arange(len(labels)) < len(dataset.test_labels)


def blank(
    config: Config, program: programs.EnsembleProgram, has_validation: bool
) -> Snapshot:
    """A Snapshot before the first epoch, with every array of its final shape."""
    seeds = config.seeds
    count = sharding.places(seeds, program.mesh)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
    shapes = jax.eval_shape(program.init, keys)
    state = jax.tree.map(lambda x: np.zeros((seeds, *x.shape[1:]), x.dtype), shapes)
    each = (seeds, config.epochs)
    parts = ("train", "test", "val") if has_validation else ("train", "test")
    history = {
        f"{part}_{kind}": np.full(each, np.nan)
        for part in parts
        for kind in ("loss", "accuracy")
    }
    if config.model == "ibnn":
        for name in ("lam", *SOLVER_METRICS):
            history[name] = np.full((*each, config.layers), np.nan)
    if config.model == "nemon":
        history |= {name: np.full((*each, 1), np.nan) for name in SOLVER_METRICS}
    if config.certified_eps:
        history["test_certified"] = np.full(each, np.nan)
    return Snapshot(
        epoch=0,
        state=state,
        best=(state.params, state.rest),
        best_loss=np.full(seeds, np.inf),
        history=history,
        seconds=np.full(config.epochs, np.nan),
    )


def _next(old: Snapshot, state, metrics: dict, seconds: float) -> Snapshot:
    """The Snapshot one epoch later; the old one stays as it is."""
    epoch = old.epoch
    history = {name: values.copy() for name, values in old.history.items()}
    for name, values in history.items():
        values[:, epoch] = metrics[name]
    loss = metrics["val_loss" if "val_loss" in history else "test_loss"]
    better = loss < old.best_loss

    def choose(new, kept):
        return np.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, kept)

    all_seconds = old.seconds.copy()
    all_seconds[epoch] = seconds
    return Snapshot(
        epoch=epoch + 1,
        state=state,
        best=jax.tree.map(choose, (state.params, state.rest), old.best),
        best_loss=np.where(better, loss, old.best_loss),
        history=history,
        seconds=all_seconds,
    )
