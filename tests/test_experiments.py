"""The experiments: each end to end on tiny data, resumed, and drawn without JAX."""

import importlib
import math
import subprocess
import sys

import numpy as np
import pytest

from train.errors import Stopped
from train.experiments import main, options, results, show
from train.experiments.study import Study

TRAINING = ("learning_speed", "less_data", "expressivity", "memorization")
NETWORKS = ("pgd", "pixle", "transfer", "theory")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Options that train networks of 8 x 8 digits in no time, all experiments into one folder."""
    out = tmp_path_factory.mktemp("experiments")
    return options.Options(
        dataset="digits",
        seeds=2,
        epochs=1,
        train_fraction=0.1,
        images=6,
        fixed_lams=(-0.1,),
        quick=True,
        out=str(out),
    )


def few(name, points):
    """As many points as the verdict needs, and no more."""
    if name == "multistability":
        return [
            p
            for p in points
            if p["lam"]
            in (
                0.02,
                0.4,
                *importlib.import_module("train.experiments.multistability").PATH,
            )
        ]
    if name in ("boundary2d", "transfer"):
        return points[:2]
    if name in ("less_data", "expressivity", "pgd", "pixle", "theory"):
        return [p for p in points if p["variant"] in ("sm", "trained")]
    return points


@pytest.fixture(scope="module")
def folders(tiny):
    """name -> folder of an experiment, run on first use."""
    done = {}

    def run(name):
        if name not in done:
            module = importlib.import_module(f"train.experiments.{name}")
            whole = module.points
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, "points", lambda study: few(name, whole(study)))
                done[name] = main.run(name, tiny)
        return done[name]

    return run


@pytest.mark.parametrize("name", options.NAMES)
def test_end_to_end(name, folders, tiny, capsys):
    folder = folders(name)
    rows = results.read(folder / "results.csv")
    seeds = {row["seed"] for row in rows if math.isfinite(row["seed"])}
    assert seeds == {0, 1}
    assert {"figure.png", "figure.pdf", "verdict.txt", "about.json"} <= {
        f.name for f in folder.iterdir()
    }
    assert (folder / "figure.png").stat().st_size > 5000
    verdict = (folder / "verdict.txt").read_text()
    assert "Paper:" in verdict and "nan" not in verdict
    # A finished experiment measures nothing again.
    module = importlib.import_module(f"train.experiments.{name}")
    before = (folder / "results.csv").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "measure", None)
        main.run(name, tiny)
    assert (folder / "results.csv").read_bytes() == before


@pytest.mark.parametrize("name", ("pgd", "pixle"))
def test_attacks_say_of_which_epoch_the_networks_are(name, folders, tiny):
    folder, study = folders(name), Study(tiny)
    rows = results.read(folder / "results.csv")
    for variant in ("sm", "trained"):
        lowest = study.history(variant)[0]["test_loss"].argmin(1) + 1
        assert {
            (row["seed"], row["epoch"]) for row in results.pick(rows, variant=variant)
        } == set(enumerate(lowest))
    assert (
        "of epochs SM 1, 1; IBNN, lam trained in bounds 1, 1."
        in (folder / "verdict.txt").read_text()
    )


def test_figures_need_no_jax(folders):
    """Nothing but the rows is read, so that figures can be drawn anywhere."""
    paths = [str(folders(name)) for name in options.NAMES]
    code = "import sys; sys.modules['jax'] = sys.modules['flax'] = None; from train.experiments import show; show.main(sys.argv[1:])"
    run = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Paper:") == len(options.NAMES)


def test_networks_are_shared(folders, tiny):
    """All experiments of one size train the plain networks once."""
    for name in TRAINING:
        folders(name)
    study = Study(tiny)
    plain = {v: study.config(v).out for v in study.all_variants()}
    assert len(set(plain.values())) == 4
    assert (
        study.config("sm", train_fraction=tiny.train_fraction * 1.0).out == plain["sm"]
    )


@pytest.mark.parametrize("stop", ("error", "signal"))
def test_resumed_experiment_writes_the_same_file(stop, tiny, tmp_path):
    import dataclasses

    from train.experiments import multistability

    chosen = [
        {"part": "starts", "coupling": "uniform", "lam": lam}
        for lam in (0.02, 0.2, 0.4)
    ]
    measured, measure, caught = [], multistability.measure, []

    def measure_some(study, point):
        if len(measured) == 2:
            if stop == "error":
                raise RuntimeError("the power went out")
            caught.append(15)
        measured.append(point)
        return measure(study, point)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multistability, "points", lambda study: chosen)
        patch.setattr(multistability, "verdict", lambda rows: "")
        patch.setattr(multistability, "draw", lambda figure, rows: None)
        whole = main.run(
            "multistability", dataclasses.replace(tiny, out=str(tmp_path / "whole"))
        )
        patch.setattr(multistability, "measure", measure_some)
        broken = dataclasses.replace(tiny, out=str(tmp_path / "broken"))
        with pytest.raises(RuntimeError if stop == "error" else Stopped):
            main.run("multistability", broken, caught)
        assert len(results.read(broken.folder("multistability") / "results.csv")) == 4
        patch.setattr(multistability, "measure", measure)
        resumed = main.run("multistability", broken)
    assert (resumed / "results.csv").read_bytes() == (
        whole / "results.csv"
    ).read_bytes()


def test_a_training_that_diverges_is_a_result(tiny, tmp_path, monkeypatch):
    import dataclasses

    from train.engine import loop
    from train.experiments import less_data

    def diverge(*_, **__):
        raise loop.NonFiniteLoss("the loss is nan")

    monkeypatch.setattr(loop, "train", diverge)
    rows = Study(dataclasses.replace(tiny, out=str(tmp_path))).outcomes("free")
    assert [row["finite"] for row in rows] == [0, 0] and all(
        math.isnan(row["best"]) for row in rows
    )
    good = [
        {"variant": "sm", "fraction": 1.0, "seed": s, "best": 0.8, "finite": 1}
        for s in (0, 1)
    ]
    bad = [{"variant": "free", "fraction": 1.0} | row for row in rows]
    assert "did not stay finite" in less_data.verdict(good + bad)


def test_ensemble_is_the_trained_networks(folders, tiny):
    """The networks of a study classify the test images as the run's own evaluation did at their lowest test loss."""
    folders("learning_speed")
    study = Study(tiny)
    data = study.dataset
    for variant in ("sm", "trained"):
        history, _ = study.history(variant)
        at_best = history["test_accuracy"][np.arange(2), history["test_loss"].argmin(1)]
        correct = study.ensemble(variant).each(
            _correct, data.test_images, data.test_labels
        )
        np.testing.assert_allclose(np.asarray(correct).mean(1), at_best, atol=1e-6)


def _correct(model, seed, images, labels):
    return model(images).argmax(-1) == labels


def test_results_hold_whole_points(tmp_path):
    table = results.Results(tmp_path)
    table.add(
        {"variant": "sm", "eps": 0.1},
        [{"seed": 0, "accuracy": 0.5}, {"seed": 1, "accuracy": math.nan}],
    )
    table.add({"variant": "sm", "eps": 0.2}, [{"seed": 0, "other": 3}])
    again = results.Results(tmp_path)
    assert again.has({"variant": "sm", "eps": 0.1}) and not again.has(
        {"variant": "sm", "eps": 0.3}
    )
    rows = again.rows()
    assert len(rows) == len(table.rows()) == 3
    assert (
        [row["seed"] for row in rows] == [0, 1, 0]
        and rows[2]["other"] == 3
        and math.isnan(rows[2]["accuracy"])
    )


def test_crossing_and_curve():
    x, y = np.array([0.1, 0.5, 1.0]), np.array([0.6, 0.8, 0.9])
    assert results.crossing(x, y, 0.7) == pytest.approx(0.3)
    assert results.crossing(x, y, 0.5) == 0.1
    assert results.crossing(x, y, 0.95) is None
    rows = [{"x": 1.0, "y": v} for v in (1.0, 2.0, 3.0)] + [{"x": 0.0, "y": math.nan}]
    xs, middle, low, high = results.curve(rows, "x", "y", coverage=1)
    assert (
        list(xs) == [0, 1]
        and middle[1] == 2
        and (low[1], high[1]) == (1, 3)
        and math.isnan(middle[0])
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nothing"], "invalid choice"),
        (["pgd", "--images", "0"], "images must be at least 1"),
        (["pgd", "--fixed-lams", "0.1"], "fixed_lams must be negative"),
        (["pgd", "--seeds", "0"], "seeds must be at least 1"),
        (["pgd", "--dataset", "mnist"], "dataset must be one of"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        options.parse(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_numbers_choose_the_folder():
    base = options.Options()
    same = options.Options(data_dir="elsewhere")
    other = options.Options(epochs=3)
    assert base.folder("pgd") == same.folder("pgd") != other.folder("pgd")
    names, chosen = options.parse(["all", "--quick", "--seeds", "1"])
    assert (
        names == options.NAMES
        and chosen.seeds == 1
        and chosen.epochs == options.QUICK["epochs"]
    )


def test_show_needs_results(tmp_path):
    with pytest.raises(SystemExit, match="holds no results.csv"):
        show.main([str(tmp_path)])
