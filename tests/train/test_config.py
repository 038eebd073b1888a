"""Options, the schedule and the folder of a run: nothing here needs JAX."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from train import config as configs
from train.config import Config
from train.engine import schedule
from train.runs import folder as folders
from train.runs import summary


def test_sizes_of_the_paper():
    sizes = {
        "fashion_mnist": (1, 3),
        "svhn_cropped": (2, 3),
        "cifar10": (3, 8),
        "digits": (1, 3),
    }
    for name, size in sizes.items():
        resolved = Config(dataset=name).resolved()
        assert (resolved.layers, resolved.channels) == size
    assert Config(dataset="cifar10", channels=16).resolved().channels == 16


def test_folder_follows_the_options():
    one, other = Config().resolved().out, Config(epochs=3).resolved().out
    assert one == Config(quiet=True).resolved().out != other


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"model": "mlp"}, "sm, ibnn, both"),
        ({"dataset": "mnist"}, "fashion_mnist"),
        ({"dataset": "arrows"}, "train.data.arrows"),
        ({"epochs": 0}, "at least 1"),
        ({"epochs": 2.5}, "type int"),
        ({"epochs": True}, "type int"),
        ({"seeds": -1}, "at least 1"),
        ({"p": 0.0}, "positive"),
        ({"lam": float("nan")}, "finite"),
        ({"lr_max": 1e-4}, "at least lr_min"),
        ({"momentum": 1.0}, r"\[0, 1\)"),
        ({"train_fraction": 0.0}, r"\(0, 1\]"),
        ({"test_fraction": 1.5}, r"\(0, 1\]"),
        ({"coupling": "5x0"}, "window"),
        ({"coupling": "5x5x5"}, "window"),
        ({"solver": "brent"}, "newton"),
        ({"x64": True, "precision": "bfloat16"}, "precision"),
        ({"train_lam": 1}, "type bool"),
        ({"processes": 2}, "all three, and with distributed"),
        ({"coordinator": "a:1", "processes": 2, "process": 0}, "distributed is off"),
        ({"distributed": True, "coordinator": "a:1", "processes": 2}, "all three"),
        (
            {"distributed": True, "coordinator": "a", "processes": 2, "process": 0},
            "HOST:PORT",
        ),
        (
            {"distributed": True, "coordinator": "a:1", "processes": 2, "process": 2},
            "from 0 to processes - 1, 1",
        ),
    ],
)
def test_wrong_values(wrong, words):
    with pytest.raises(ValueError, match=words):
        Config(**wrong)


def test_unknown_options(capsys):
    with pytest.raises(ValueError, match="unknown options: epoch"):
        Config.from_dict({"epoch": 3})
    for arguments in (
        ["--epoch", "3"],
        ["--epochs", "many"],
        ["--epochs", "0"],
    ):  # no abbreviations either
        with pytest.raises(SystemExit) as stop:
            configs.parse(arguments)
        assert stop.value.code == 2
    assert "at least 1" in capsys.readouterr().err


def test_command_line():
    assert configs.parse([]) == Config()
    given = configs.parse(
        "--model ibnn --no-train-lam --lam -0.5 --constraint none --x64 --coupling 5x5 --tol 1e-6".split()
    )
    assert given == Config(
        model="ibnn",
        train_lam=False,
        lam=-0.5,
        constraint="none",
        x64=True,
        coupling="5x5",
        tol=1e-6,
    )
    text = configs.parser().format_help()
    for field in dataclasses.fields(Config):
        assert field.metadata["help"] and "--" + field.name.replace("_", "-") in text


def test_every_field_is_free_or_compared():
    config = Config()
    names = {f.name for f in dataclasses.fields(Config)}
    assert set(Config.FREE) < names and set(Config.UNCOMPILED) < names
    assert config.differences(Config(epochs=3, quiet=True)) == ["epochs"]
    assert (
        Config(p=3.0, epochs=7).compiled_part()
        == Config(p=3.0).compiled_part()
        != config.compiled_part()
    )


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 7, 80])
def test_triangular(epochs):
    rates = schedule.triangular(epochs)
    assert rates.shape == (epochs,) and rates.dtype == np.float32
    np.testing.assert_allclose(rates, rates[::-1])
    assert rates.max() == np.float32(0.01)
    if epochs > 2:
        assert rates[0] == np.float32(0.001)
        steps = np.diff(rates[: (epochs + 1) // 2])
        np.testing.assert_allclose(steps, steps.mean() if len(steps) else 0, rtol=1e-3)


def test_triangular_is_the_papers():
    rates = schedule.triangular(80)
    np.testing.assert_allclose(rates[[0, 39, 40, 79]], [0.001, 0.01, 0.01, 0.001])
    with pytest.raises(ValueError, match="at least 1"):
        schedule.triangular(0)


def test_folder_refuses_other_options_and_a_second_process(tmp_path):
    config = Config(out=str(tmp_path / "run")).resolved()
    with folders.RunFolder(config).held():
        with (
            pytest.raises(ValueError, match="another process"),
            folders.RunFolder(config).held(),
        ):
            pass
    with folders.RunFolder(dataclasses.replace(config, quiet=True)).held():
        pass
    with pytest.raises(ValueError, match="epochs is 80 there and 5 here"):
        with folders.RunFolder(dataclasses.replace(config, epochs=5)).held():
            pass


def fake_run(folder, models=("sm", "ibnn"), epochs=4):
    folder.mkdir()
    accuracy = {"sm": [0.5, 0.6, 0.8, 0.7], "ibnn": [0.6, 0.8, 0.9, 0.9]}
    metrics, seconds = [], []
    for model in models:
        for epoch in range(epochs):
            for seed in range(3):
                line = {
                    "model": model,
                    "seed": seed,
                    "epoch": epoch + 1,
                    "train_loss": 1.0,
                    "train_accuracy": 0.5,
                    "test_loss": 2.0 - epoch * (epoch < 3),
                    "test_accuracy": accuracy[model][epoch],
                }
                if model == "ibnn":
                    line |= {
                        "lam": [0.01 * epoch],
                        "solver_steps": [5.0],
                        "solver_steps_max": [7.0],
                        "solver_converged": [1.0],
                        "solver_residual_max": [1e-6],
                    }
                metrics.append(line)
            seconds.append({"model": model, "epoch": epoch + 1, "seconds": 2.0})
    for name, lines in (("metrics.jsonl", metrics), ("seconds.jsonl", seconds)):
        (folder / name).write_text(
            "".join(map(lambda line: folders.json.dumps(line) + "\n", lines))
        )
    folders.write_json(folder / "setup.json", {"parameters": {"sm": 100, "ibnn": 101}})
    return folder


def test_summary_and_table(tmp_path):
    results = summary.summarize(folders.read(fake_run(tmp_path / "run")))
    assert (
        results["sm"]["accuracy_best"] == [0.8] * 3
        and results["sm"]["accuracy_last"] == [0.7] * 3
    )
    assert (
        results["sm"]["accuracy_at_lowest_loss"] == [0.8] * 3
    )  # lowest at the third epoch
    assert (
        results["sm"]["epochs_to_sm_best"] == 3
        and results["ibnn"]["epochs_to_sm_best"] == 2
    )
    assert results["ibnn"]["solver_steps_max"] == 7 and results["ibnn"]["seconds"] == 8
    text = summary.table(results, {"sm": 100, "ibnn": 101})
    assert (
        "80.00 [80.00, 80.00]" in text
        and "5.0 (max 7)" in text
        and len({*map(len, text.split("\n")[1:2])}) == 1
    )


def test_never_reached_and_alone(tmp_path):
    folder = fake_run(tmp_path / "run")
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(
        text.replace("0.9,", "0.75,").replace('0.8, "lam"', '0.7, "lam"')
    )
    results = summary.summarize(folders.read(folder))
    assert results["ibnn"]["epochs_to_sm_best"] is None and "> 4" in summary.table(
        results
    )
    alone = summary.summarize(
        folders.read(fake_run(tmp_path / "alone", models=("ibnn",)))
    )
    assert alone["ibnn"]["epochs_to_sm_best"] is None and "> 4" not in summary.table(
        alone
    )


def test_cut_off_line_is_left_out(tmp_path):
    folder = fake_run(tmp_path / "run", models=("sm",))
    lines = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(lines[:-30])
    assert folders.read(folder)["sm"]["test_loss"].shape == (
        3,
        3,
    )  # the epoch that is not complete is not read


def test_two_runs_together(tmp_path):
    runs = folders.read_all(
        [fake_run(tmp_path / "a", models=("sm",)), fake_run(tmp_path / "b")]
    )
    assert list(runs) == ["sm (a)", "sm (b)", "ibnn"]


def test_plots_need_files_only(tmp_path):
    folder = fake_run(tmp_path / "run")
    code = f"import sys, train.runs.plots as p; p.curves([{str(folder)!r}], {str(tmp_path / 'c.png')!r}); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_table_needs_no_jax(tmp_path):
    folder = fake_run(tmp_path / "run")
    code = f"import sys, train.runs.summary as r; r.main([{str(folder)!r}]); assert 'jax' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert "ibnn" in done.stdout
