"""One model of a run while it trains: checkpoints, lines, the end on a signal."""

import time

from train.config import Config
from train.distributed.processes import Alone
from train.engine.loop import Observer, Snapshot
from train.errors import Stopped
from train.runs.checkpoint import Checkpoints
from train.runs.folder import RunFolder
from train.runs.progress import Lines
from train.runs.trackers import Tracker, metrics_of


class ModelRun(Observer):
    """Follows the training of one model and writes what there is to write.

    Args:
        last: where it goes on from; None for a start.
        saved: its checkpoints, in the first process; elsewhere None.
        caught: numbers of the signals that ask to stop, filled from outside.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        team: Alone,
        last: Snapshot | None,
        saved: Checkpoints | None,
        caught: list[int],
        progress: Lines,
        tracker: Tracker,
    ):
        self.config, self.folder, self.team = config, folder, team
        self.last, self.saved, self.caught = last, saved, caught
        self.progress, self.tracker = progress, tracker
        self._saved_at = time.monotonic()

    def resume(self, template: Snapshot) -> Snapshot | None:
        done = self.last.epoch if self.last else 0
        if done:
            self.progress.note(
                f"{self.config.model}: going on after epoch {done} of "
                f"{self.config.epochs}"
            )
        self.progress.start(self.config, done)
        return self.last

    def stage(self, text: str) -> None:
        self.progress.stage(text)

    def epoch_done(self, snapshot: Snapshot) -> None:
        self.last = snapshot
        self.team.broadcast_from_first(lambda: self._record(snapshot))
        self.progress.epoch(snapshot)
        self._stop_if_asked()

    def poll(self) -> None:
        # Several processes must agree to stop, which they do between epochs only.
        if self.team.count == 1:
            self._stop_if_asked()

    def finish(self) -> None:
        """Save the last epoch; called when the training returned."""
        self.progress.finish()
        self._save()

    def _record(self, snapshot: Snapshot) -> None:
        self.folder.append(self.config.model, snapshot)
        metrics = metrics_of(snapshot.history, snapshot.epoch, self.config.first_seed)
        self.tracker.log(self.config.model, snapshot.epoch, metrics)
        if time.monotonic() - self._saved_at >= self.config.checkpoint_seconds:
            self._write()
            self._saved_at = time.monotonic()

    def _save(self) -> None:
        self.team.broadcast_from_first(self._write)

    def _write(self) -> None:
        if self.saved and self.last:
            self.saved.save(self.last)

    def _stop_if_asked(self) -> None:
        number = max(self.team.gather(self.caught[0] if self.caught else 0))
        if not number:
            return
        self.progress.finish()
        self._save()
        self.caught[:] = [number]  # also in the processes that it did not reach
        done = self.last.epoch if self.last else 0
        raise Stopped(
            f"{self.config.model}, {done} of {self.config.epochs} epochs are saved in "
            f"{self.folder.path}"
        )
