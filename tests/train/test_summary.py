"""Tables, comparisons, curves and reports, from the files of a run alone."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from train import cli
from train.config import Config
from train.runs import folder as folders
from train.runs import report, summary


def test_summary_and_table(tmp_path, fake_run):
    results = summary.summarize(folders.read(fake_run(tmp_path / "run")))
    sm, ibnn = results["sm"], results["ibnn"]
    assert sm["accuracy_best"] == [0.8] * 3 and sm["accuracy_last"] == [0.7] * 3
    assert sm["accuracy_selected"] == [0.8] * 3  # lowest at the third epoch
    assert sm["epochs_to_sm_best"] == 3 and ibnn["epochs_to_sm_best"] == 2
    assert ibnn["solver_steps_max"] == 7 and ibnn["seconds"] == 8
    text = summary.table(results, {"sm": 100, "ibnn": 101})
    assert "80.00 [80.00, 80.00]" in text and "5.0 (max 7)" in text
    assert "best" in text and "as in the paper" in summary.footnote(results)


def test_validation_chooses_the_epoch_and_the_table_says_so(tmp_path, fake_run):
    run = fake_run(tmp_path / "run", validation=True)
    results = summary.summarize(folders.read(run))
    assert results["sm"]["selected_by"] == "val"
    assert results["sm"]["accuracy_selected"] == [0.6] * 3  # the second epoch's
    text = summary.show([run])
    assert "at lowest val. loss" in text and "validation images" in text
    columns = [cell.strip() for cell in text.splitlines()[0].split("  ")]
    assert "best" not in columns  # the best on the test set is no result then


def test_percentiles_are_called_what_they_are(tmp_path, fake_run):
    text = summary.show([fake_run(tmp_path / "run")])
    assert "[5th, 95th percentile] over 3 seeds" in text and "interval]" not in text
    assert summary.spread(np.arange(21.0)) == [10.0, 1.0, 19.0]


def test_models_are_compared_seed_by_seed(tmp_path, fake_run):
    runs = folders.read(fake_run(tmp_path / "run"))
    found = summary.paired_difference(runs["ibnn"], runs["sm"])
    np.testing.assert_allclose(found["mean"], 0.101)  # .9, .901 and .902 beside .8
    low, high = found["interval"]
    assert 0.0999 <= low < found["mean"] < high <= 0.1021
    assert found["seeds"] == found["better"] == 3
    assert "ibnn - sm, paired by seed: +10.10 points" in summary.show(
        [tmp_path / "run"]
    )


@pytest.mark.parametrize("seeds, interval", [([0], None), ([0, 1], [0.1, 0.1])])
def test_a_difference_of_few_or_equal_seeds(tmp_path, fake_run, seeds, interval):
    runs = folders.read(fake_run(tmp_path / "run"))
    ours = {
        name: values[seeds] for name, values in runs["sm"].items() if values.ndim == 2
    }
    theirs = {"seed": np.array(seeds)} | ours
    ours = theirs | {"test_accuracy": theirs["test_accuracy"] + 0.1}
    found = summary.paired_difference(ours, theirs)
    np.testing.assert_allclose(found["mean"], 0.1)
    if interval is None:
        assert found["interval"] is None
    else:
        np.testing.assert_allclose(found["interval"], interval)
    apart = theirs | {"seed": np.array(seeds) + 7}
    assert summary.paired_difference(ours, apart) is None


def test_the_bootstrap_covers_the_mean():
    """Most intervals of samples of 8 normal numbers hold their true mean."""
    rng = np.random.default_rng(0)
    theirs = {"seed": np.arange(8), "test_loss": np.zeros((8, 1))}
    theirs["test_accuracy"] = np.zeros((8, 1))
    covered = 0
    for _ in range(40):
        ours = theirs | {"test_accuracy": 1 + rng.normal(size=(8, 1))}
        low, high = summary.paired_difference(ours, theirs)["interval"]
        covered += low < 1 < high
    assert 32 <= covered <= 39


def test_never_reached_and_alone(tmp_path, fake_run):
    run = fake_run(tmp_path / "run")
    lines = folders.read_lines(run / "metrics.jsonl")
    for line in lines:
        if line["model"] == "ibnn":
            line["test_accuracy"] = 0.7
    (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    results = summary.summarize(folders.read(run))
    assert results["ibnn"]["epochs_to_sm_best"] is None
    assert "> 4" in summary.table(results)
    alone = fake_run(tmp_path / "alone", models=("ibnn",))
    results = summary.summarize(folders.read(alone))
    assert results["ibnn"]["epochs_to_sm_best"] is None
    assert "> 4" not in summary.table(results)


def test_runs_together(tmp_path, fake_run):
    paths = [fake_run(tmp_path / "a"), fake_run(tmp_path / "b")]
    runs = folders.read_all(paths)
    assert list(runs) == ["sm (a)", "ibnn (a)", "sm (b)", "ibnn (b)"]
    # Each model beside the standard one of its own run.
    shown = summary.show(paths).splitlines()
    assert [line.split(",")[0] for line in shown if "paired by seed" in line] == [
        "ibnn (a) - sm (a)",
        "ibnn (b) - sm (b)",
    ]
    other = fake_run(tmp_path / "c", models=("ibnn",))
    assert list(folders.read_all([other])) == ["ibnn"]


@pytest.mark.parametrize(
    "options, alike",
    [
        ({"seeds": 5, "p": 3.0, "lam": -0.1, "tol": 1e-3}, True),
        ({"seed": 1}, False),
        ({"dataset": "mnist"}, False),
        ({"epochs": 8}, False),
        ({"lr_max": 0.1}, False),
    ],
)
def test_models_of_two_runs_are_compared_where_they_were_trained_alike(
    tmp_path, fake_run, options, alike
):
    ours = fake_run(tmp_path / "ours", models=("ibnn",))
    theirs = fake_run(tmp_path / "theirs", models=("sm",))
    for folder, given in ((ours, options | {"model": "ibnn"}), (theirs, {})):
        config = Config(**{"model": "sm", "epochs": 4} | given).resolved()
        folders.write_json(folder / "config.json", dataclasses.asdict(config))
    shown = summary.show([theirs, ours])
    assert ("paired by seed" in shown) == alike
    (row,) = [line for line in shown.splitlines() if line.startswith("ibnn")][:1]
    assert (" 2 " in row) == alike  # the epochs to the standard model's best


def test_a_model_that_is_not_trained_to_its_end_says_so(tmp_path, fake_run):
    run = fake_run(tmp_path / "run")
    config = Config(model="both", epochs=4).resolved()
    folders.write_json(run / "config.json", dataclasses.asdict(config))
    lines = folders.read_lines(run / "metrics.jsonl")
    lines = [x for x in lines if x["model"] == "sm" or x["epoch"] < 3]
    (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    shown = summary.show([run])
    assert "ibnn, 2 of 4 epochs  " in shown and "sm, " not in shown
    assert "paired by seed" not in shown


def test_of_two_seeds_one_reaches_the_standard_best(tmp_path, fake_run):
    sm = folders.read(fake_run(tmp_path / "run"))["sm"]
    two = {name: v[:2] if v.ndim > 1 or name == "seed" else v for name, v in sm.items()}
    two["test_accuracy"] = np.array([[0.1, 0.8, 0.7, 0.7], [0.1, 0.2, 0.9, 0.7]])
    assert summary.summarize({"sm": two})["sm"]["epochs_to_sm_best"] == 2


def test_a_folder_of_runs_stands_for_its_runs(tmp_path, fake_run):
    paths = [fake_run(tmp_path / name) for name in ("a", "b")]
    assert folders.runs_in([tmp_path]) == folders.runs_in(paths) == paths
    assert "ibnn (b)" in summary.show([tmp_path])


def test_cut_off_line_is_left_out(tmp_path, fake_run):
    run = fake_run(tmp_path / "run", models=("sm",))
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines[:-30])
    # The epoch that is not complete is not read.
    assert folders.read(run)["sm"]["test_loss"].shape == (3, 3)


LINE = (
    '{"model": "sm", "seed": 0, "epoch": 1, "train_loss": 1, "train_accuracy": 1, '
    '"test_loss": 1, "test_accuracy": 0.25}\n'
)
DAMAGES = {
    "metrics.jsonl": [
        '{"model": "sm", \n',
        "[]\n",
        "\x00\n",
        '{"seed": 0}\n',
        '{"model": "sm"}\n',
        '{"model": "sm", "seed": 0, "epoch": 1}\n',
        '{"model": "sm", "seed": "a", "epoch": 1}\n',
        '{"model": [1], "seed": 0, "epoch": 1}\n',
        LINE.replace("0.25", "[0.25]"),
        LINE.replace("}", ', "lam": 1.0}'),
        '{"model": "sm", "seed": 0, "epoch": 1, "test_accuracy": "a"}\n',
    ],
    "seconds.jsonl": [
        "{\n",
        '{"model": "sm", "seconds": "long"}\n',
        '{"model": "sm"}\n',
    ],
    "setup.json": ["", "{", "\x00", "[]"],
}


@pytest.mark.parametrize("command", ["records", "plots"])
@pytest.mark.parametrize(
    "name, text", [(name, text) for name, texts in DAMAGES.items() for text in texts]
)
def test_damaged_files_are_named(tmp_path, fake_run, capsys, command, name, text):
    run = fake_run(tmp_path / "run", models=("sm",))
    (run / name).write_text(text)
    status = cli.main([command, str(run)])
    printed = capsys.readouterr()
    if command == "plots" and name == "setup.json":
        assert status == 0  # curves need no setup.json
        return
    assert status == 1 and name in printed.err and "damaged" in printed.err
    assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize("command", ["records", "plots", "predict"])
@pytest.mark.parametrize("what", ["nothing", "a file", "an empty folder"])
def test_no_run_is_one_line(tmp_path, capsys, command, what):
    run = tmp_path / "run"
    if what == "a file":
        run.write_text("")
    elif what == "an empty folder":
        run.mkdir()
    status = cli.main([command, str(run), *(["a.png"] if command == "predict" else [])])
    printed = capsys.readouterr()
    assert status == 1 and str(run) in printed.err
    assert len(printed.err.splitlines()) == 1


def test_incomplete_runs_are_shown(tmp_path, fake_run, capsys):
    run = fake_run(tmp_path / "run", models=("sm",), epochs=1)
    for name in ("setup.json", "seconds.jsonl"):
        (run / name).unlink()
        assert cli.main(["records", str(run)]) == 0
        assert cli.main(["plots", str(run)]) == 0
    assert "sm" in capsys.readouterr().out


def test_a_picture_of_no_kind_is_refused(tmp_path, fake_run, capsys):
    run = fake_run(tmp_path / "run", models=("sm",))
    for out in ("curves.txt", "missing/curves.png"):
        assert cli.main(["plots", str(run), "--out", str(tmp_path / out)]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_report_is_one_page(tmp_path, fake_run):
    run = fake_run(tmp_path / "run")
    (run / "config.json").write_text(json.dumps({"dataset": "<b>"}))
    (run / "curves.png").write_bytes(b"picture")
    page = report.write_report(run).read_text()
    assert "data:image/png;base64,cGljdHVyZQ==" in page and "paired by seed" in page
    assert "&lt;b&gt;" in page and "<b>" not in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched


@pytest.mark.parametrize("command, made", [("plots", "curves.png"), ("records", None)])
def test_neither_needs_jax(tmp_path, fake_run, command, made):
    run = fake_run(tmp_path / "run")
    code = (
        "import sys; from train import cli; "
        f"sys.exit(cli.main([{command!r}, {str(run)!r}]) or 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not made or (run / made).read_bytes().startswith(b"\x89PNG")
