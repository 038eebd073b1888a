"""Runs in one process: begun, resumed, extended, refused."""

import dataclasses

import numpy as np
import pytest

import ibnn_jax
import train.runs
from train import cli
from train.data import prepare
from train.engine import loop
from train.errors import Stopped, UserError
from train.runs import folder as folders
from train.runs.folder import RunFolder
from train.runs.session import complete


def stop_after(config, epochs):
    """Train until a signal comes after so many epochs; the lines there were."""
    caught, lines = [], []

    def say(text):
        lines.append(text)
        if f"epoch {epochs}/" in text:
            caught.append(15)

    with pytest.raises(Stopped):
        complete(config, caught, say)
    return lines


def test_resumed_and_whole_runs_are_the_same(tiny_config, tmp_path):
    whole = complete(tiny_config(out=str(tmp_path / "whole")))
    config = tiny_config()
    stop_after(config, 2)
    lines = []
    folder = complete(config, say=lines.append)
    assert any("going on after epoch 2 of 3" in line for line in lines)
    for name in ("metrics.jsonl",):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_more_epochs_extend_a_run_of_constant_rates(tiny_config, tmp_path):
    config = tiny_config(schedule="constant")
    complete(config)
    longer = dataclasses.replace(config, epochs=5)
    lines = []
    folder = complete(longer, say=lines.append)
    assert any("going on after epoch 3 of 5" in line for line in lines)
    whole = complete(dataclasses.replace(longer, out=str(tmp_path / "whole")))
    for name in ("metrics.jsonl",):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert folders.read_config(folder.path).epochs == 5
    with pytest.raises(UserError, match="epochs is 5 there and 4 here"):
        complete(dataclasses.replace(config, epochs=4))


def test_more_epochs_extend_both_models(tiny_config, tmp_path):
    """The second model goes on too, and is not begun again."""
    config = tiny_config(schedule="constant", model="both", epochs=2)
    complete(config)
    longer = dataclasses.replace(config, epochs=3)
    lines = []
    folder = complete(longer, say=lines.append)
    assert sum("going on after epoch 2 of 3" in line for line in lines) == 2
    whole = complete(dataclasses.replace(longer, out=str(tmp_path / "whole")))
    found, expected = folders.read(folder.path), folders.read(whole.path)
    for model in ("sm", "ibnn"):
        for key in ("test_loss", "train_accuracy"):
            np.testing.assert_array_equal(found[model][key], expected[model][key])


@pytest.mark.parametrize("schedule", ["triangular", "cosine"])
def test_other_schedules_cannot_be_extended(tiny_config, schedule):
    config = tiny_config(schedule=schedule)
    stop_after(config, 1)
    with pytest.raises(UserError, match=f"the {schedule} schedule would have given"):
        complete(dataclasses.replace(config, epochs=5))


def test_every_checkpoint_is_read_before_anything_is_written(tiny_config):
    """The second model's checkpoint is damaged: the metrics of both stay."""
    config = tiny_config(model="both", solver="picard")
    stop_after_ibnn = []

    def say(text):
        if text.startswith("ibnn") and "epoch 2/" in text:
            stop_after_ibnn.append(15)

    with pytest.raises(Stopped):
        complete(config, stop_after_ibnn, say)
    folder = RunFolder(config)
    before = (folder / "metrics.jsonl").read_bytes()
    assert before.count(b'"ibnn"') == 4
    damage(folder / "checkpoints" / "ibnn")
    with pytest.raises(UserError, match="checkpoints/ibnn is damaged"):
        complete(config)
    assert (folder / "metrics.jsonl").read_bytes() == before


def damage(folder, seed=0):
    """Flip a bit in the middle of the largest file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def test_out_on_a_file(tiny_config, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/run"):
        with pytest.raises(UserError, match="file is a file, not a folder"):
            complete(tiny_config(out=str(tmp_path / out)))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/sm", "metrics.jsonl"])
def test_files_and_folders_in_each_others_place(tiny_config, tmp_path, place):
    config = tiny_config(epochs=1)
    path = tmp_path / "run" / place
    if place.endswith("jsonl"):
        path.mkdir(parents=True)
    else:
        path.parent.mkdir(parents=True)
        path.write_text("")
    with pytest.raises(UserError, match=place):
        complete(config)


def test_the_largest_seed_is_a_seed(tiny_config):
    runs = []
    for seed in (0, 2**31, 2**32 - 1):
        config = tiny_config(seed=seed, epochs=1, out=f"{tiny_config().out}-{seed}")
        runs.append(folders.read(complete(config).path)["sm"]["test_loss"])
    assert not np.allclose(runs[0], runs[1]) and not np.allclose(runs[1], runs[2])


def test_folder_refuses_other_options_and_a_second_process(tmp_path, tiny_config):
    config = tiny_config(epochs=80)
    with RunFolder(config).held():
        with pytest.raises(ValueError, match="another process"):
            with RunFolder(config).held():
                pass
    folders.write_json(RunFolder(config) / "config.json", dataclasses.asdict(config))
    shorter = RunFolder(dataclasses.replace(config, epochs=5))
    with shorter.held():  # nothing is lost: there is no epoch yet
        pass
    (shorter / "metrics.jsonl").write_text("{}\n")
    with RunFolder(dataclasses.replace(config, quiet=True)).held():
        pass
    with pytest.raises(ValueError, match="epochs is 80 there and 5 here"):
        with shorter.held():
            pass


def test_a_window_larger_than_the_images_leaves_nothing(tiny_config):
    config = tiny_config(model="ibnn", coupling="9x9")
    with pytest.raises(UserError, match="no larger than the images, 8x8"):
        complete(config)
    assert not RunFolder(config).path.exists()


def test_a_refused_command_changes_nothing(tiny_config):
    """The data is no longer what it was, and more epochs are asked for."""
    config = tiny_config(schedule="constant", epochs=1)
    folder = complete(config)
    setup = folders.read_json(folder / "setup.json")
    setup["data"]["fingerprint"] = "0" * 16
    folders.write_json(folder / "setup.json", setup)
    before = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="data set is not the one"):
        complete(dataclasses.replace(config, epochs=2))
    assert before == {p: p.read_bytes() for p in before}
    lines = []
    complete(config, say=lines.append)
    assert "finished already" in lines[0]


def test_a_run_that_lost_no_epoch_takes_other_options(tiny_config):
    """As the message of a loss that is not finite advises."""
    rates = {"schedule": "constant", "lr_min": 1e36, "lr_max": 1e36}
    config = tiny_config(epochs=1, clip_norm=0.0, warmup_epochs=0, **rates)
    with pytest.raises(UserError, match="A lower --lr-max"):
        complete(config)
    folder = complete(dataclasses.replace(config, lr_max=0.01, lr_min=0.01))
    assert folders.read_config(folder.path).lr_max == 0.01


def test_a_batch_that_devices_cannot_share_is_refused(tiny_config):
    config = tiny_config(batch_size=15, data_devices=2)
    with pytest.raises(ValueError, match="15 images does not divide evenly"):
        loop.batch_size(config, prepare(config))


def test_as_paper_selects_on_the_test_set(tiny_config):
    config = tiny_config(as_paper=True)
    folder = complete(config)
    history = folders.read(folder.path)["sm"]
    assert "val_loss" not in history
    summary = folders.read_json(folder / "summary.json")
    assert summary["data"]["train_images"] == 40
    assert summary["results"]["sm"]["selected_by"] == "test"
    assert "as in the paper" in cli.results(folder)


def test_every_seed_leaves_its_best_and_last_network(tiny_config, pictures):
    config = tiny_config(first_seed=4, val_fraction=0.2)
    folder = complete(config)
    images = np.load(pictures)["test_images"][..., None] / np.float32(255)
    ensemble = train.runs.load(folder.path)
    history = folders.read(folder.path)["sm"]
    labels = np.load(pictures)["test_labels"]
    for row, seed in enumerate((4, 5)):
        place = folder / "models" / "sm" / f"seed-{seed}"
        logits = ibnn_jax.load(place)(images)
        np.testing.assert_allclose(logits, ensemble(images)[row], rtol=1e-4, atol=1e-5)
        last = np.asarray(ibnn_jax.load(place / "last")(images)).argmax(-1)
        accuracy = history["test_accuracy"][row, -1]
        np.testing.assert_allclose((last == labels).mean(), accuracy)
