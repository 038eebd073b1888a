"""What is sent elsewhere never costs a run."""

import pytest

from train.runs.trackers import Guarded, Tracker


class Fails(Tracker):
    def __init__(self, where):
        self.where, self.logged = where, []

    def start(self, folder, config):
        if self.where == "start":
            raise OSError("no server")

    def log(self, model, epoch, metrics):
        self.logged.append(epoch)
        if self.where == "log" and epoch == 2:
            raise OSError("the server is gone")

    def finish(self):
        if self.where == "finish":
            raise OSError("the server is gone")


@pytest.mark.parametrize("where, logged", [("log", [1, 2]), ("finish", [1, 2, 3])])
def test_a_tracker_that_fails_is_said_once_and_left_out(where, logged, tmp_path):
    tracker, said = Fails(where), []
    guarded = Guarded(tracker, said.append)
    guarded.start(tmp_path, {})
    for epoch in (1, 2, 3):
        guarded.log("sm", epoch, {"accuracy": 0.5})
    guarded.finish()
    assert tracker.logged == logged
    assert said == ["Fails failed, and gets no more of this run: the server is gone"]


def test_a_tracker_that_cannot_start_ends_the_run(tmp_path):
    with pytest.raises(OSError, match="no server"):
        Guarded(Fails("start"), print).start(tmp_path, {})
