"""What a run shows while it trains: plain lines, or a bar on a terminal."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from train.config import Config
from train.runs.summary import spread

if TYPE_CHECKING:
    from train.engine.loop import Snapshot


class Lines:
    """A line for every epoch and for what takes long without one.

    Args:
        say: where a line goes.
    """

    def __init__(self, say: Callable[[str], None]):
        self.say = say

    def note(self, text: str) -> None:
        """Something worth a line."""
        self.say(text)

    def start(self, config: Config, done: int) -> None:
        """One model begins, or goes on after so many epochs."""
        self._config, self._first = config, done

    def stage(self, text: str) -> None:
        """What happens until the next epoch is finished."""
        self.say(f"{self._config.model:<4} {text} ...")

    def epoch(self, snapshot: "Snapshot") -> None:
        self.say(f"{describe(self._config, snapshot)}  {self._time(snapshot)}")

    def finish(self) -> None:
        """The model is trained, or the run stopped."""

    def _time(self, snapshot: "Snapshot") -> str:
        seconds = snapshot.seconds[snapshot.epoch - 1]
        left = seconds_left(snapshot, self._first)
        return f"{seconds:.2f} s  left {'?' if left is None else clock(left)}"


class Bar(Lines):
    """A bar for each model, on a terminal."""

    def __init__(self):
        from tqdm import tqdm

        super().__init__(lambda text: tqdm.write(text, file=sys.stdout))
        self._tqdm, self._bar = tqdm, None

    def start(self, config: Config, done: int) -> None:
        super().start(config, done)
        self._bar = self._tqdm(
            total=config.epochs,
            initial=done,
            desc=config.model,
            unit="epoch",
            dynamic_ncols=True,
            bar_format="{desc:<4} {bar:20} {n_fmt}/{total_fmt} {postfix}",
        )

    def stage(self, text: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(f"{text} ...")

    def epoch(self, snapshot: "Snapshot") -> None:
        if self._bar is not None:
            self._bar.n = snapshot.epoch
            text = describe(self._config, snapshot, short=True)
            self._bar.set_postfix_str(f"{text}  {self._time(snapshot)}")

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def describe(config: Config, snapshot: "Snapshot", short: bool = False) -> str:
    """Where a run is; medians over the seeds, accuracies with their percentiles."""
    done = snapshot.epoch
    now = {name: values[:, done - 1] for name, values in snapshot.history.items()}
    middle, low, high = (100 * v for v in spread(now["test_accuracy"]))
    accuracy = f"accuracy {middle:.2f}% [{low:.2f}, {high:.2f}]"
    if short:
        return accuracy
    parts = [
        f"{config.model:<4} epoch {done:>{len(str(config.epochs))}}/{config.epochs}",
        f"train loss {np.median(now['train_loss']):.4f}",
    ]
    if "val_loss" in now:
        parts.append(f"val loss {np.median(now['val_loss']):.4f}")
    parts.append(f"test loss {np.median(now['test_loss']):.4f} {accuracy}")
    if "lam" in now:
        lams = " ".join(f"{lam:+.4f}" for lam in np.median(now["lam"], axis=0))
        converged = 100 * now["solver_converged"].mean()
        steps = now["solver_steps"].mean()
        parts.append(
            f"lam {lams}  solver {steps:.1f} steps, {converged:.1f}% converged"
        )
    return "  ".join(parts)


def seconds_left(snapshot: "Snapshot", first: int) -> float | None:
    """Time this model still takes; None until it can be told.

    first: epochs that were finished when this process began. Its first one also
    compiles, and says little about the rest.
    """
    known = snapshot.seconds[first + 1 : snapshot.epoch][-5:]
    left = len(snapshot.seconds) - snapshot.epoch
    if not left:
        return 0.0
    return float(known.mean() * left) if len(known) else None


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
