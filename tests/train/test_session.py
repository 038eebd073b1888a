"""Runs in one process: resumed, extended, damaged, loaded, swept, tracked."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import ibnn_jax
import train.runs
from train import cli
from train.data import prepare
from train.errors import Stopped, UserError
from train.runs import ensemble, progress
from train.runs import folder as folders
from train.runs.folder import RunFolder
from train.runs.session import complete


def options_of(config, *changed):
    """The command line of a config."""
    line = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = field.name.replace("_", "-")
        if value == field.default:
            continue
        line += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return [*line, *changed]


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


def test_progress_says_compiling_and_leaves_the_first_epoch_out(tiny_config):
    lines = []
    complete(tiny_config(), say=lines.append)
    epochs = [line for line in lines if "epoch " in line and "/3" in line]
    assert "left ?" in epochs[0] and "left ?" not in epochs[1]
    assert lines.index("sm   compiling epoch 1 ...") < lines.index(epochs[0])


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


@pytest.fixture(scope="module")
def saved(pictures, tmp_path_factory):
    """A finished run of the standard model, and what its networks say."""
    from train.config import Config

    out = tmp_path_factory.mktemp("saved") / "run"
    config = Config(
        dataset=str(pictures),
        model="sm",
        seeds=2,
        epochs=3,
        channels=2,
        batch_size=20,
        warmup_epochs=0,
        compile_cache="off",
        out=str(out),
    ).resolved()
    complete(config)
    return config


def test_flipped_bits_are_never_loaded(saved, tmp_path):
    """Every file of a checkpoint in turn: refused, or it did not matter."""
    dataset = prepare(saved)
    wanted = jax.tree.leaves(ensemble.load(saved, dataset).weights)
    config = dataclasses.replace(saved, out=str(tmp_path / "run"))
    shutil.copytree(saved.out, config.out)
    refused = 0
    files = sorted((tmp_path / "run" / "checkpoints").rglob("*"))
    for file in (path for path in files if path.is_file() and path.stat().st_size):
        content = file.read_bytes()
        places = np.linspace(0, len(content) - 1, 6).astype(int)
        for place in sorted(set(places)):
            flipped = bytearray(content)
            flipped[place] ^= 4
            file.write_bytes(bytes(flipped))
            try:
                found = jax.tree.leaves(ensemble.load(config, dataset).weights)
                for a, b in zip(found, wanted, strict=True):
                    np.testing.assert_array_equal(a, b)
            except (ValueError, FileNotFoundError) as error:
                refused += 1
                assert "run/checkpoints" in str(error) or "no checkpoint" in str(error)
        file.write_bytes(content)
    assert refused > 5


def test_loading(saved, pictures):
    images = np.load(pictures)["test_images"][..., None]
    found = train.runs.load(saved.out)
    logits = found(images)
    assert logits.shape == (2, 20, 3) and len(found.epochs) == 2
    np.testing.assert_allclose(found(images / 255), logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.probabilities(images).sum(-1), 1, rtol=1e-5)
    # What was measured while it trained.
    history = folders.read(saved.out)["sm"]
    labels = np.load(pictures)["test_labels"]
    accuracy = (np.asarray(logits).argmax(-1) == labels).mean(1)
    chosen = history["val_loss"].argmin(1)
    np.testing.assert_allclose(accuracy, history["test_accuracy"][[0, 1], chosen])
    assert found.epochs == (chosen + 1).tolist()


def test_loading_checks_what_is_asked(saved, tmp_path):
    dataset = prepare(saved)
    with pytest.raises(ValueError, match="coupling is 'channel' there and 'layer'"):
        ensemble.load(dataclasses.replace(saved, coupling="layer"), dataset)
    with pytest.raises(ValueError, match="holds the model sm, and not 'ibnn'"):
        train.runs.load(saved.out, "ibnn")
    with pytest.raises(FileNotFoundError, match="no run in"):
        train.runs.load(tmp_path)
    shutil.copytree(saved.out, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(FileNotFoundError, match="no checkpoint of sm"):
        train.runs.load(tmp_path / "run")


@pytest.mark.parametrize(
    "name", ["config.json", "setup.json", "metrics.jsonl", "summary.json"]
)
@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}'])
def test_damaged_files_of_a_run_are_named(saved, tmp_path, name, text, capsys):
    """The same command, with a damaged file in its folder: a line, or all is well."""
    folder = tmp_path / "run"
    shutil.copytree(saved.out, folder)
    (folder / name).write_text(text)
    if name != "summary.json":
        (folder / "summary.json").unlink()
    status = cli.main(options_of(dataclasses.replace(saved, out=str(folder))))
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    if name in ("config.json", "setup.json"):
        assert status == 1 and name in printed.err
    else:  # written again from the checkpoints
        assert status == 0


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


def test_missing_files_of_a_checkpoint_are_noticed(saved, tmp_path):
    config = dataclasses.replace(saved, out=str(tmp_path / "run"))
    shutil.copytree(saved.out, config.out)
    wanted = jax.tree.leaves(train.runs.load(saved.out).weights)
    files = sorted((tmp_path / "run" / "checkpoints").rglob("*"))
    for file in (path for path in files if path.is_file()):
        content = file.read_bytes()
        file.unlink()
        try:
            found = jax.tree.leaves(train.runs.load(config.out).weights)
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(a, b)
        except (ValueError, FileNotFoundError) as error:
            assert "checkpoint" in str(error)
        file.write_bytes(content)


def test_changed_data_is_refused(saved, tmp_path):
    config = dataclasses.replace(saved, out=str(tmp_path / "run"))
    shutil.copytree(saved.out, config.out)
    (tmp_path / "run" / "summary.json").unlink()
    setup = folders.read_json(tmp_path / "run" / "setup.json")
    setup["data"]["fingerprint"] = "0" * 16
    (tmp_path / "run" / "setup.json").write_text(json.dumps(setup))
    with pytest.raises(UserError, match="data set is not the one"):
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
    with RunFolder(dataclasses.replace(config, quiet=True)).held():
        pass
    with pytest.raises(ValueError, match="epochs is 80 there and 5 here"):
        with RunFolder(dataclasses.replace(config, epochs=5)).held():
            pass


def test_a_window_larger_than_the_images_leaves_nothing(tiny_config):
    config = tiny_config(model="ibnn", coupling="9x9")
    with pytest.raises(UserError, match="no larger than the images, 8x8"):
        complete(config)
    assert not RunFolder(config).path.exists()


def test_as_paper_selects_on_the_test_set(tiny_config):
    config = tiny_config(as_paper=True)
    folder = complete(config)
    history = folders.read(folder.path)["sm"]
    assert "val_loss" not in history
    summary = folders.read_json(folder / "summary.json")
    assert summary["data"]["train_images"] == 40
    assert summary["results"]["sm"]["selected_by"] == "test"
    assert "as in the paper" in cli.results(folder)


def test_predict(saved, pictures, tmp_path, capsys):
    from PIL import Image

    images = np.load(pictures)["test_images"][:3]
    labels = np.load(pictures)["test_labels"][:3]
    files = []
    for i, image in enumerate(images):
        files.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(image).save(files[-1])
    np.savez(tmp_path / "some.npz", images=images)
    table = tmp_path / "classes.csv"
    arguments = ["predict", saved.out, *files, str(tmp_path / "some.npz")]
    assert cli.main([*arguments, "--out", str(table)]) == 0
    printed = capsys.readouterr().out
    assert "some.npz[2]" in printed and "seed 1" in printed
    rows = [line.split(",") for line in table.read_text().splitlines()]
    assert len(rows) == 7 and rows[0][:3] == ["image", "class", "probability"]
    # A picture and the same image in an array have the same class.
    assert [row[1:] for row in rows[1:4]] == [row[1:] for row in rows[4:]]
    probabilities = np.asarray(
        train.runs.load(saved.out).probabilities(images[..., None])
    )
    means = probabilities.mean(0)
    assert [int(row[1]) for row in rows[1:4]] == means.argmax(-1).tolist()
    assert len(labels) == 3


def test_predict_refuses_what_is_no_image(saved, tmp_path, capsys):
    from PIL import Image

    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "large.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    np.savez(tmp_path / "other.npz", pictures=np.zeros((1, 8, 8)))
    np.savez(tmp_path / "bytes.npz", images=np.full((1, 8, 8), 255.0))
    np.savez(tmp_path / "none.npz", images=np.zeros((0, 8, 8), np.uint8))
    for name, words in {
        "large.png": "images of 9x9x1, and the networks take 8x8x1",
        "broken.png": "no picture",
        "other.npz": "lacks images",
        "bytes.npz": "in [0, 1]",
        "missing.png": "no file",
        "none.npz": "no images",
    }.items():
        assert cli.main(["predict", saved.out, str(tmp_path / name)]) == 1
        error = capsys.readouterr().err
        assert words in error and len(error.splitlines()) == 1
    assert cli.main(["predict", saved.out, "a.png", "--model", "ibnn"]) == 1


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


def test_a_sweep_makes_the_product_of_its_lists(pictures, tmp_path, capsys):
    file = tmp_path / "sweep.toml"
    file.write_text(
        f'out = "{tmp_path}/sweep"\n[data]\ndataset = "{pictures}"\n'
        '[model]\nmodel = "sm"\nchannels = [1, 2]\n'
        "[training]\nseeds = 2\nepochs = 1\nbatch-size = 20\nlr-max = [0.01, 0.02]\n"
        'warmup_epochs = 0\n[run]\ncompile-cache = "off"\n'
    )
    arguments = ["--config", str(file), "--quiet"]
    assert len(cli.parse(arguments)) == 4
    parts = [cli.parse([*arguments, "--part", f"{i}/3"]) for i in (1, 2, 3)]
    assert sorted(run.out for part in parts for run in part) == sorted(
        run.out for run in cli.parse(arguments)
    )
    assert (
        cli.main([*arguments, "--channels", "1"]) == 0
    )  # the command line comes first
    printed = capsys.readouterr().out
    assert "run 2 of 2" in printed and "sm (lr_max=0.02)" in printed
    assert (tmp_path / "sweep" / "lr_max=0.01" / "summary.json").exists()


@pytest.mark.parametrize(
    "text, words",
    [
        ("epochs = [1,", "no TOML file"),
        ("epoch = 1", "unknown options: epoch"),
        ("epochs = []", "empty list"),
        ("epochs = [1, 1]", "the same"),
        ("epochs = [1, 0]", "at least 1"),
        ("[models]\nmodel = 'sm'", "unknown options: models"),
        ("[model]\nmodel = 3", "type str"),
    ],
)
def test_wrong_option_files(tmp_path, capsys, text, words):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        cli.main(["--config", str(tmp_path / "a.toml")])
    assert stop.value.code == 2 and words in capsys.readouterr().err


def test_an_earlier_config_is_a_config_file(saved):
    assert cli.parse(["--config", f"{saved.out}/config.json"]) == [saved]
    (run,) = cli.parse(["--config", f"{saved.out}/config.json", "--p", "3"])
    assert run == dataclasses.replace(saved, p=3.0)


def test_a_failed_run_does_not_stop_a_sweep(pictures, tmp_path, capsys):
    file = tmp_path / "sweep.toml"
    file.write_text(
        f'out = "{tmp_path}/sweep"\ndataset = "{pictures}"\nmodel = "sm"\nseeds = 1\n'
        "epochs = 1\nbatch_size = 20\nwarmup_epochs = 0\nclip_norm = 0\n"
        'lr_max = [1e30, 0.01]\nlr_min = 0.01\nschedule = "constant"\n'
        'compile_cache = "off"\nquiet = true\n'
    )
    assert cli.main(["--config", str(file)]) == 1
    printed = capsys.readouterr()
    assert "1 of 2 runs failed" in printed.err and "lr_max=1e+30" in printed.err
    assert "lr_max=0.01" in printed.out or "sm " in printed.out
    assert (tmp_path / "sweep" / "lr_max=0.01" / "summary.json").exists()


def test_tensorboard(tiny_config):
    pytest.importorskip("tensorboardX")
    folder = complete(tiny_config(tracker="tensorboard"))
    (events,) = (folder / "tensorboard" / "sm").iterdir()
    content = events.read_bytes()
    assert b"median/test_accuracy" in content and b"seed-1/train_loss" in content


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
