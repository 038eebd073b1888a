"""Training an ensemble: warm-up, epochs, evaluation; plain arrays out. Knows nothing of files."""

import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np

from train import data
from train.distributed import sharding
from train.engine import program as programs
from train.engine import schedule


class NonFiniteLoss(FloatingPointError):
    """A loss became NaN or infinite; the message says of which seed, and at which step."""


@dataclasses.dataclass
class Snapshot:
    """All there is of a run after some epochs, in numpy: what a checkpoint holds, and what `train` returns.

    epoch: epochs finished. state: programs.State, arrays with a leading axis of seeds. best: (params, rest) of every seed as
    they were at its lowest test loss, best_loss [S]. history: name -> [S, epochs] or [S, epochs, n], float64, NaN where
    still to come: train_loss, train_accuracy (both over the epoch's steps, as the weights changed), test_loss,
    test_accuracy and, for IBNN, lam, solver_steps, solver_steps_max, solver_converged, solver_residual_max.
    seconds: [epochs] of each epoch, compiling and evaluation included.
    """

    epoch: int
    state: programs.State
    best: tuple
    best_loss: np.ndarray
    history: dict[str, np.ndarray]
    seconds: np.ndarray


def prepare(config):
    """The data set of a config, with its fractions and label_noise applied (all follow config.seed)."""
    dataset = data.load(config.dataset, config.data_dir)
    dataset = data.take_fraction(dataset, "train", config.train_fraction, config.seed)
    dataset = data.take_fraction(dataset, "test", config.test_fraction, config.seed)
    return data.scramble_labels(dataset, config.label_noise, config.seed)


def train(
    config,
    dataset,
    *,
    resume: Callable | None = None,
    on_epoch: Callable | None = None,
    poll: Callable | None = None,
):
    """Train config.seeds networks of one kind on a data.Dataset; returns the last Snapshot.

    config.model is "sm" or "ibnn". resume(template Snapshot) returns a Snapshot to go on from, or None; on_epoch(Snapshot)
    is called after every epoch; poll() is called again and again while the device works, and may raise to stop.

    The weights and the data order of seed number i follow from fold_in(key(config.seed), i) alone, and are the same for
    both models, so a seed has the same result alone or among others, and the two models are paired.

    Seeds spread over the devices there are (`sharding.make_mesh`); results do not depend on how many. Where jax.distributed
    has brought several processes together, each calls this with the same arguments, its resume returns the same, and each
    trains its share and gets the whole Snapshot.

    Raises ValueError for a config that cannot be trained, NonFiniteLoss when training diverges.
    """
    config = config.resolved()
    if config.model not in ("sm", "ibnn"):
        raise ValueError(
            f"train() trains one model, 'sm' or 'ibnn', not {config.model!r}"
        )
    if config.x64 and not jax.config.jax_enable_x64:
        raise ValueError(
            "x64 needs jax.config.update('jax_enable_x64', True) before anything is computed"
        )

    mesh = sharding.make_mesh(config.seeds, config.devices, config.data_devices)
    program = programs.build(
        config, dataset.image_shape, dataset.classes, config.model == "ibnn", mesh
    )
    numbers = np.arange(
        config.first_seed, config.first_seed + config.seeds, dtype=np.uint32
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.key(config.seed), sharding.put(numbers, mesh, spread=True)
    )
    init_keys, warmup_keys, order_keys = (
        jax.vmap(jax.random.fold_in, (0, None))(keys, stream) for stream in range(3)
    )
    run = _Runner(config, dataset, poll or (lambda: None), mesh)

    snapshot = blank(config, program, init_keys)
    restored = resume(snapshot) if resume else None
    snapshot = restored or dataclasses.replace(
        snapshot,
        state=_warmed_up(config, dataset, program, mesh, run, init_keys, warmup_keys),
    )
    rates = schedule.triangular(config.epochs, config.lr_min, config.lr_max)
    state = (
        sharding.put(restored.state, mesh, spread=True) if restored else snapshot.state
    )
    for epoch in range(snapshot.epoch, config.epochs):
        start = time.perf_counter()
        state, losses, correct = run.epoch(
            program, state, rates[epoch], order_keys, epoch
        )
        metrics = run.evaluate(program, state, epoch)
        metrics |= {
            "train_loss": losses.mean(1),
            "train_accuracy": correct / (losses.shape[1] * run.batch),
        }
        snapshot = _next(
            snapshot, sharding.get(state), metrics, time.perf_counter() - start
        )
        if on_epoch:
            on_epoch(snapshot)
    return snapshot


def parameters(config, dataset, model):
    """Number of trained parameters of one network."""
    return programs.build(
        config.resolved(), dataset.image_shape, dataset.classes, model == "ibnn"
    ).parameters


class _Runner:
    """The data on the devices, and the two calls that use it, checked for non-finite losses."""

    def __init__(self, config, dataset, poll, mesh=None):
        self.config, self.poll = config, poll
        self.batch = min(config.batch_size, len(dataset.train_labels))
        self.train = sharding.put(
            (dataset.train_images, dataset.train_labels), mesh, spread=False
        )
        self.test = sharding.put(
            (dataset.test_images, dataset.test_labels), mesh, spread=False
        )

    def epoch(self, program, state, rate, keys, epoch, stage="epoch"):
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, epoch)
        state, losses, correct = program.epoch(state, rate, keys, *self.train)
        losses, correct = self._wait(losses), self._wait(correct)
        self._check(losses, f"the training loss in {stage} {epoch + 1}", step=True)
        return state, losses.astype(np.float64), correct

    def evaluate(self, program, state, epoch):
        found = {
            name: self._wait(value)
            for name, value in program.evaluate(state, *self.test).items()
        }
        self._check(found["loss"][:, None], f"the test loss after epoch {epoch + 1}")
        found["test_loss"], found["test_accuracy"] = (
            found.pop("loss"),
            found.pop("correct") / len(self.test[1]),
        )
        return found

    def _wait(self, array):
        pause = 0.001
        while not array.is_ready():
            self.poll()
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        self.poll()
        return sharding.get(array)

    def _check(self, values, what, step=False):
        wrong = ~np.isfinite(values)
        if wrong.any():
            column = int(wrong.any(0).argmax())  # the earliest step of any seed
            row = int(wrong[:, column].argmax())
            where = f", step {column + 1} of {values.shape[1]}" if step else ""
            raise NonFiniteLoss(
                f"{what}{where} is {values[row, column]} for seed {self.config.first_seed + row} ({self.config.model}). A lower "
                "--lr-max, gradient clipping (--clip-norm 1) or a bound on lam (--constraint unique) may help."
            )


def _warmed_up(config, dataset, program, mesh, run, init_keys, warmup_keys):
    """The first state: initial values, and on top of them the weights of the standard twin after the warm-up epochs.

    The twin has its own momentum, and runs the first rates of a schedule of its own as long as the training's.
    """
    state = program.init(init_keys)
    if not config.warmup_epochs:
        return state
    program_sm = programs.build(
        config, dataset.image_shape, dataset.classes, False, mesh
    )
    twin = program_sm.init(init_keys)
    rates = schedule.triangular(
        max(config.epochs, config.warmup_epochs), config.lr_min, config.lr_max
    )
    for epoch in range(config.warmup_epochs):
        twin, _, _ = run.epoch(
            program_sm, twin, rates[epoch], warmup_keys, epoch, "warm-up epoch"
        )
    return program.adopt(state, twin)


def blank(config, program, init_keys):
    """A Snapshot before the first epoch, with every array of its final shape."""
    state = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(program.init, init_keys)
    )
    each = (config.seeds, config.epochs)
    history = {
        name: np.full(each, np.nan)
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    }
    if config.model == "ibnn":
        for name in (
            "lam",
            "solver_steps",
            "solver_steps_max",
            "solver_converged",
            "solver_residual_max",
        ):
            history[name] = np.full((*each, config.layers), np.nan)
    return Snapshot(
        0,
        state,
        (state.params, state.rest),
        np.full(config.seeds, np.inf),
        history,
        np.full(config.epochs, np.nan),
    )


def _next(old, state, metrics, seconds):
    """The Snapshot one epoch later; the old one stays as it is."""
    history, epoch = (
        {name: values.copy() for name, values in old.history.items()},
        old.epoch,
    )
    for name, values in history.items():
        values[:, epoch] = metrics[name]
    better = metrics["test_loss"] < old.best_loss
    choose = lambda new, kept: np.where(
        better.reshape(-1, *[1] * (new.ndim - 1)), new, kept
    )
    best = jax.tree.map(choose, (state.params, state.rest), old.best)
    all_seconds = old.seconds.copy()
    all_seconds[epoch] = seconds
    return Snapshot(
        epoch + 1,
        state,
        best,
        np.where(better, metrics["test_loss"], old.best_loss),
        history,
        all_seconds,
    )
