"""What is done with a finished run: loaded, found damaged, asked for predictions."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import train.runs
from train import cli
from train.data import prepare
from train.errors import UserError
from train.runs import ensemble
from train.runs import folder as folders
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
    assert len(set(rows[0])) == len(rows[0])  # csv.DictReader keeps one of equal names
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
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    np.savez(tmp_path / "other.npz", pictures=np.zeros((1, 8, 8)))
    np.savez(tmp_path / "bytes.npz", images=np.full((1, 8, 8), 255.0))
    np.savez(tmp_path / "none.npz", images=np.zeros((0, 8, 8), np.uint8))
    for name, words in {
        "large.png": "images of 9x9x1, and the networks take 8x8x1",
        "deep.png": "more than 8 bits",
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


def test_an_earlier_config_is_a_config_file(saved):
    assert cli.parse(["--config", f"{saved.out}/config.json"]) == [saved]
    (run,) = cli.parse(["--config", f"{saved.out}/config.json", "--p", "3"])
    assert run == dataclasses.replace(saved, p=3.0)


def test_predict_warns_of_images_in_another_range(saved, pictures, tmp_path):
    images = np.load(pictures)["test_images"] / np.float32(16)
    np.savez(tmp_path / "bright.npz", images=images)
    with pytest.warns(
        UserWarning, match=r"bright.npz: images are in .* not in \[0, 1\]"
    ):
        assert cli.main(["predict", saved.out, str(tmp_path / "bright.npz")]) == 0
