"""What a run tells while it goes on: trackers, the bar, the time left."""

from types import SimpleNamespace

import numpy as np
import pytest

from train.errors import Stopped, UserError
from train.runs import progress
from train.runs.session import complete


def test_progress_says_compiling_and_leaves_the_first_epoch_out(tiny_config):
    lines = []
    complete(tiny_config(), say=lines.append)
    epochs = [line for line in lines if "epoch " in line and "/3" in line]
    assert "left ?" in epochs[0] and "left ?" not in epochs[1]
    assert lines.index("sm   compiling epoch 1 ...") < lines.index(epochs[0])


def test_tensorboard(tiny_config):
    pytest.importorskip("tensorboardX")
    folder = complete(tiny_config(tracker="tensorboard"))
    (events,) = (folder / "tensorboard" / "sm").iterdir()
    content = events.read_bytes()
    assert b"median/test_accuracy" in content and b"seed-1/train_loss" in content


class Writer:
    """What TensorBoard shows of a SummaryWriter's folder."""

    shown = []  # epochs

    def __init__(self, path, purge_step=None):
        if purge_step is not None:
            Writer.shown = [epoch for epoch in Writer.shown if epoch < purge_step]

    def add_scalar(self, name, value, epoch):
        if name == "median/test_loss":
            Writer.shown.append(epoch)

    def flush(self):
        pass

    close = flush


@pytest.mark.parametrize("end", [Stopped, KeyboardInterrupt])
def test_tensorboard_shows_each_epoch_once(tiny_config, monkeypatch, end):
    """A run that is stopped saves a checkpoint; one that is killed does not."""
    module = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", module)
    monkeypatch.setattr(Writer, "shown", [])
    config, caught = tiny_config(tracker="tensorboard", checkpoint_seconds=60.0), []

    def say(text):
        if "epoch 2/3" in text and end is KeyboardInterrupt:
            raise KeyboardInterrupt
        if "epoch 2/3" in text:
            caught.append(15)

    with pytest.raises(end):
        complete(config, caught, say)
    assert Writer.shown == [1, 2]
    complete(config)
    assert Writer.shown == [1, 2, 3]


@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
def test_trackers_get_options_and_metrics(tiny_config, monkeypatch, tracker):
    """The package is a stand-in that keeps what it is told."""
    told = []

    def keep(name):
        return lambda *args, **named: told.append((name, args, named)) or run

    run = SimpleNamespace(log=keep("log"), finish=keep("finish"))
    names = ("set_tracking_uri", "start_run", "log_params", "log_metrics", "end_run")
    module = SimpleNamespace(init=keep("init"), **{name: keep(name) for name in names})
    monkeypatch.setitem(__import__("sys").modules, tracker, module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    complete(tiny_config(tracker=tracker))
    metrics = [args[0] for name, args, _ in told if name in ("log", "log_metrics")]
    assert len(metrics) == 3 and "sm/median/test_loss" in metrics[-1]
    if tracker == "wandb":
        assert told[0][2]["mode"] == "offline" and told[0][2]["config"]["seeds"] == 2
    assert told[-1][0] in ("finish", "end_run")


def test_a_missing_tracker_is_a_line(tiny_config, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(UserError, match="pip install mlflow"):
        complete(tiny_config(tracker="mlflow"))


def test_a_bar_on_a_terminal(tiny_config, capsys):
    lines = []
    bar = progress.Bar()
    bar.say = lines.append
    complete(tiny_config(), progress=bar)
    shown = capsys.readouterr().err
    assert "3/3" in shown and "accuracy" in shown and "compiling epoch 1" in shown
    assert "left 0 s" in shown and len(lines) == 1  # the data


def test_time_left():
    def after(epochs, seconds):
        times = np.full(10, np.nan)
        times[:epochs] = seconds
        return SimpleNamespace(epoch=epochs, seconds=times)

    assert progress.seconds_left(after(1, [50]), first=0) is None
    assert progress.seconds_left(after(2, [50, 2]), first=0) == 16
    # Going on after epoch 2: the third compiles again.
    assert progress.seconds_left(after(3, [50, 2, 40]), first=2) is None
    assert progress.seconds_left(after(4, [50, 2, 40, 4]), first=2) == 24
    assert progress.seconds_left(after(10, 1), first=0) == 0
    assert progress.clock(59.6) == "1 min 00 s" and progress.clock(3720) == "1 h 02 min"
