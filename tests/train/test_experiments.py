"""The experiments: each end to end on tiny data, resumed, and drawn without JAX."""

import dataclasses
import importlib
import math
import subprocess
import sys

import numpy as np
import pytest

from train.errors import Stopped
from train.experiments.harness import main, options, results
from train.experiments.harness.study import Study

TRAINING = ("learning_speed", "less_data", "expressivity", "memorization")
TWO_VARIANTS = ("less_data", "memorization", "expressivity", "pgd", "pixle", "theory")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Options that train networks of 8 x 8 digits in no time, into one folder."""
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


def experiment(name):
    return importlib.import_module(f"train.experiments.{name}")


def few(name, points):
    """As many points as the verdict needs, and no more."""
    if name == "multistability":
        chosen = (0.02, 0.4, *experiment(name).PATH)
        return [point for point in points if point["lam"] in chosen]
    if name in ("boundary2d", "transfer"):
        return points[:2]
    if name.startswith("nemon"):
        return [point for point in points if point["variant"] in ("explicit", "nemon")]
    if name in TWO_VARIANTS:
        return [point for point in points if point["variant"] in ("sm", "trained")]
    return points


@pytest.fixture(scope="module")
def folders(tiny):
    """name -> folder of an experiment, run on first use."""
    done = {}

    def run(name):
        if name not in done:
            module = experiment(name)
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
    files = {file.name for file in folder.iterdir()}
    assert {"figure.png", "figure.pdf", "verdict.txt", "about.json"} <= files
    assert (folder / "figure.png").stat().st_size > 5000
    verdict = (folder / "verdict.txt").read_text()
    assert "Paper:" in verdict and "nan" not in verdict
    # A finished experiment measures nothing again.
    before = (folder / "results.csv").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment(name), "measure", None)
        main.run(name, tiny)
    assert (folder / "results.csv").read_bytes() == before


@pytest.mark.parametrize("name", TRAINING + ("pgd", "pixle"))
def test_two_models_are_compared_seed_by_seed(name, folders):
    verdict = " ".join((folders(name) / "verdict.txt").read_text().split())
    assert "minus SM" in verdict
    assert "in brackets their bootstrap 95% confidence interval" in verdict


@pytest.mark.parametrize("name", ("pgd", "pixle"))
def test_attacks_say_of_which_epoch_the_networks_are(name, folders, tiny):
    folder, study = folders(name), Study(tiny)
    rows = results.read(folder / "results.csv")
    for variant in ("sm", "trained"):
        lowest = study.history(variant)[0]["test_loss"].argmin(1) + 1
        mine = results.pick(rows, variant=variant)
        assert {(row["seed"], row["epoch"]) for row in mine} == set(enumerate(lowest))
    verdict = (folder / "verdict.txt").read_text()
    assert "of epochs SM 1, 1; IBNN, lam trained in bounds 1, 1." in verdict


def test_theory_stands_beside_the_papers(folders):
    verdict = " ".join((folders("theory") / "verdict.txt").read_text().split())
    assert "(Eq. 62, (1 + lam p)^2:" in verdict and "1 / (1 - lam p)^2:" in verdict
    rows = results.read(folders("transfer") / "results.csv")
    for row in rows:
        assert 0 <= row["certified"] <= row["certified_sharper"] <= 1
    verdict = " ".join((folders("transfer") / "verdict.txt").read_text().split())
    assert "its sharper form M - 2 |lam| sqrt((D^2 - 1) / (3 D))" in verdict


@pytest.mark.parametrize("layers", (1, 2))
def test_transfer_promises_nothing_for_deep_networks(layers):
    from flax import nnx

    import ibnn_jax
    from train.experiments import transfer

    model = ibnn_jax.UCN((4, 4, 1), 3, layers=layers, neuron=None, rngs=nnx.Rngs(0))
    model.eval()
    images, labels = np.ones((2, 4, 4, 1), np.float32), np.array([0, 1])
    promised = transfer.promised(model, images, labels, -0.1)
    unknown = [np.isnan(values).all() for values in promised.values()]
    assert unknown == [layers > 1] * 3


def test_figures_need_no_jax(folders):
    """Nothing but the rows is read, so that figures can be drawn anywhere."""
    paths = [str(folders(name)) for name in options.NAMES]
    code = (
        "import sys; from train.experiments.harness.show import main; "
        "main(sys.argv[1:]); assert not {'jax', 'flax'} & set(sys.modules)"
    )
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
    plain = {variant: study.config(variant).out for variant in study.all_variants()}
    assert len(set(plain.values())) == 4
    again = study.config("sm", train_fraction=tiny.train_fraction * 1.0)
    assert again.out == plain["sm"]
    # A network that is there takes no line of advice on the bar.
    said = []
    Study(tiny, say=said.append).outcomes("sm")
    assert said == ["sm: trained already"]


def test_channels_follow_the_paper(monkeypatch):
    """Fig. 6 has its own channels for every data set, Fig. 7 those of one."""
    from train.experiments import expressivity, learning_speed

    monkeypatch.setattr(Study, "variants", lambda study: ["sm"])

    def sizes(dataset):
        points = expressivity.points(Study(options.Options(dataset=dataset)))
        return [point["channels"] for point in points]

    assert sizes("fashion_mnist") == [1, 2, 3, 5]
    assert sizes("cifar10") == [4, 8, 12, 16]

    asked = []

    def history(study, variant, **changes):
        asked.append(study.config(variant, **changes).channels)
        return {}, False

    monkeypatch.setattr(Study, "history", history)
    for dataset, channels in (
        ("fashion_mnist", None),
        ("cifar10", None),
        ("cifar10", 8),
    ):
        chosen = options.Options(dataset=dataset, channels=channels)
        learning_speed.measure(Study(chosen), {"variant": "trained"})
    assert asked == [3, 16, 8]


@pytest.mark.parametrize("stop", ("error", "signal"))
def test_resumed_experiment_writes_the_same_file(stop, tiny, tmp_path):
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

    broken = dataclasses.replace(tiny, out=str(tmp_path / "broken"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multistability, "points", lambda study: chosen)
        patch.setattr(multistability, "verdict", lambda rows: "")
        patch.setattr(multistability, "draw", lambda figure, rows: None)
        unbroken = dataclasses.replace(tiny, out=str(tmp_path / "whole"))
        whole = main.run("multistability", unbroken)
        patch.setattr(multistability, "measure", measure_some)
        with pytest.raises(RuntimeError if stop == "error" else Stopped):
            main.run("multistability", broken, caught)
        assert len(results.read(broken.folder("multistability") / "results.csv")) == 4
        patch.setattr(multistability, "measure", measure)
        resumed = main.run("multistability", broken)
    ends = [(folder / "results.csv").read_bytes() for folder in (resumed, whole)]
    assert ends[0] == ends[1]


def test_a_training_that_diverges_is_a_result(tiny, tmp_path, monkeypatch):
    from train.engine import loop
    from train.experiments import less_data

    def diverge(*_, **__):
        raise loop.NonFiniteLoss("the loss is nan")

    monkeypatch.setattr(loop, "train", diverge)
    rows = Study(dataclasses.replace(tiny, out=str(tmp_path))).outcomes("free")
    assert [row["finite"] for row in rows] == [0, 0]
    assert all(math.isnan(row["best"]) for row in rows)
    good = [
        {"variant": "sm", "fraction": 1.0, "seed": seed, "best": 0.8, "finite": 1}
        for seed in (0, 1)
    ]
    bad = [{"variant": "free", "fraction": 1.0} | row for row in rows]
    assert "did not stay finite" in less_data.verdict(good + bad)


def test_ensemble_is_the_trained_networks(folders, tiny):
    """A study's networks classify the test images as the run's own evaluation did."""
    folders("learning_speed")
    study = Study(tiny)
    data = study.dataset
    for variant in ("sm", "trained"):
        history, _ = study.history(variant)
        lowest = history["test_loss"].argmin(1)
        at_lowest = history["test_accuracy"][np.arange(2), lowest]
        ensemble = study.ensemble(variant)
        correct = ensemble.each(_correct, data.test_images, data.test_labels)
        np.testing.assert_allclose(np.asarray(correct).mean(1), at_lowest, atol=1e-6)


def _correct(model, seed, images, labels):
    return model(images).argmax(-1) == labels
