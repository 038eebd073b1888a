"""One model of a run while it trains: checkpoints, lines, the end on a signal."""

import time
from dataclasses import dataclass

from train.config import Config
from train.distributed import processes
from train.engine.loop import Observer, Snapshot
from train.errors import Stopped
from train.runs.checkpoint import Checkpoints
from train.runs.folder import RunFolder
from train.runs.progress import Lines
from train.runs.trackers import Tracker, metrics_of


@dataclass(frozen=True)
class Services:
    """What the models of a run share."""

    team: processes.Alone
    folder: RunFolder
    tracker: Tracker
    progress: Lines
    caught: list[int]  # numbers of the signals that ask to stop


class ModelRun(Observer):
    """Follows the training of one model and writes what there is to write.

    Args:
        services: of the run that it belongs to.
        config: the options, with this model.
        last: where it goes on from; None for a start.
        saved: its checkpoints, in the first process; elsewhere None.
    """

    def __init__(
        self,
        services: Services,
        config: Config,
        last: Snapshot | None,
        saved: Checkpoints | None,
    ):
        self.services, self.config = services, config
        self.last, self.saved = last, saved
        self._saved_at = time.monotonic()

    def resume(self, template: Snapshot) -> Snapshot | None:
        done = self.last.epoch if self.last else 0
        if done:
            self.services.progress.note(
                f"{self.config.model}: going on after epoch {done} of "
                f"{self.config.epochs}"
            )
        self.services.progress.start(self.config, done)
        return self.last

    def stage(self, text: str) -> None:
        self.services.progress.stage(text)

    def epoch_done(self, snapshot: Snapshot) -> None:
        self.last = snapshot
        self.services.team.broadcast_from_first(lambda: self._record(snapshot))
        self.services.progress.epoch(snapshot)
        self._stop_if_asked()

    def poll(self) -> None:
        # Several processes must agree to stop, which they do between epochs only.
        if self.services.team.count == 1:
            self._stop_if_asked()

    def finish(self) -> None:
        """Save the last epoch; called when the training returned."""
        self.services.progress.finish()
        self._save()

    def _record(self, snapshot: Snapshot) -> None:
        self.services.folder.append(self.config.model, snapshot)
        metrics = metrics_of(snapshot.history, snapshot.epoch, self.config.first_seed)
        self.services.tracker.log(self.config.model, snapshot.epoch, metrics)
        if time.monotonic() - self._saved_at >= self.config.checkpoint_seconds:
            self._write()
            self._saved_at = time.monotonic()

    def _save(self) -> None:
        self.services.team.broadcast_from_first(self._write)

    def _write(self) -> None:
        if self.saved and self.last:
            self.saved.save(self.last)

    def _stop_if_asked(self) -> None:
        caught = self.services.caught
        number = max(self.services.team.gather(caught[0] if caught else 0))
        if not number:
            return
        self.services.progress.finish()
        self._save()
        caught[:] = [number]  # also in the processes that it did not reach
        done = self.last.epoch if self.last else 0
        raise Stopped(
            f"{self.config.model}, {done} of {self.config.epochs} epochs are saved in "
            f"{self.services.folder.path}"
        )
