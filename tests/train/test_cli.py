"""`python -m train` as a user runs it: end to end, killed and resumed, refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from train.runs import checkpoint
from train.runs import folder as folders

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """An .npz data set of 40 + 20 pictures in three classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    images = (
        rng.integers(0, 200, (3, 8, 8))[labels] + rng.integers(0, 56, (60, 8, 8))
    ).astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    np.savez(
        path,
        train_images=images[:40],
        train_labels=labels[:40],
        test_images=images[40:],
        test_labels=labels[40:],
    )
    return path


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Compiled code is kept between the processes of these tests."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return (
        os.environ
        | cache
        | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "0", "PYTHONPATH": str(ROOT)}
    )


@pytest.fixture(scope="module")
def command(pictures):
    return [
        sys.executable,
        "-m",
        "train",
        "--dataset",
        str(pictures),
        "--model",
        "both",
        "--seeds",
        "2",
        "--epochs",
        "12",
        "--channels",
        "2",
        "--batch-size",
        "20",
    ]


@pytest.fixture(scope="module")
def finished(command, environment, tmp_path_factory):
    """A run nobody disturbed: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = subprocess.run(
        [*command, "--out", str(folder)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_end_to_end(finished):
    folder, text = finished
    names = {
        "config.json",
        "setup.json",
        "metrics.jsonl",
        "seconds.jsonl",
        "summary.json",
        "curves.png",
        "checkpoints",
    }
    assert names <= {path.name for path in folder.iterdir()}
    assert (
        text.count("epoch") > 24
        and "left" in text
        and "epochs to SM's best" in text
        and "converged" in text
    )
    summary, config = (
        folders.read_json(folder / "summary.json"),
        folders.read_json(folder / "config.json"),
    )
    assert (
        config["layers"] == 1
        and config["epochs"] == 12
        and summary["versions"]["jax"]
        and summary["device"]["platform"] == "cpu"
    )
    assert (
        summary["parameters"]["ibnn"] == summary["parameters"]["sm"] + 1
        and summary["data"]["train_images"] == 40
    )
    lines = folders.read_lines(folder / "metrics.jsonl")
    expected = [
        (model, seed, epoch)
        for model in ("sm", "ibnn")
        for epoch in range(1, 13)
        for seed in (0, 1)
    ]
    assert [(line["model"], line["seed"], line["epoch"]) for line in lines] == expected
    assert all(
        np.isfinite(v).all()
        for line in lines
        for name, v in line.items()
        if name != "model"
    )


def test_running_it_again_trains_nothing(finished, command, environment):
    folder, _ = finished
    before = (folder / "metrics.jsonl").stat().st_mtime_ns
    start = time.monotonic()
    done = subprocess.run(
        [*command, "--out", str(folder)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 0
        and "finished already" in done.stdout
        and "epochs to SM's best" in done.stdout
    )
    assert (
        time.monotonic() - start < 10
        and (folder / "metrics.jsonl").stat().st_mtime_ns == before
    )


def test_other_options_are_refused(finished, command, environment):
    folder, _ = finished
    done = subprocess.run(
        [*command, "--out", str(folder), "--p", "3"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "p is 10.0 there and 3.0 here" in done.stderr


def stop_when(command, environment, folder, lines, number):
    """Run until metrics.jsonl has so many lines, then send the signal; (exit status,
    what it printed).
    """
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = folder / "metrics.jsonl"
    while process.poll() is None and not (
        metrics.exists() and metrics.read_text().count("\n") >= lines
    ):
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    return process.returncode, printed


def test_killed_runs_resume_to_the_same_bytes(finished, command, environment, tmp_path):
    """SIGKILL while the standard networks train, SIGTERM a little later, SIGKILL among
    the IBNNs, then to the end.
    """
    folder = tmp_path / "killed"
    command = [*command, "--out", str(folder)]
    often, never = (["--checkpoint-seconds", seconds] for seconds in ("0", "100000"))

    status, printed = stop_when(
        [*command, *often], environment, folder, 6, signal.SIGKILL
    )
    assert status == -signal.SIGKILL
    status, printed = stop_when(
        [*command, *never], environment, folder, 12, signal.SIGTERM
    )
    assert (
        status == 128 + signal.SIGTERM
        and "stopped by SIGTERM" in printed
        and "going on after epoch" in printed
    )
    with checkpoint.Checkpoints(folder / "checkpoints" / "sm") as saved:
        assert saved.epoch >= 6  # what SIGTERM saved: every line there was
        assert f"sm, {saved.epoch} of 12 epochs are saved" in printed
    status, printed = stop_when(
        [*command, *often], environment, folder, 30, signal.SIGKILL
    )
    assert (
        status == -signal.SIGKILL
        and f"sm: going on after epoch {saved.epoch}" in printed
    )
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "ibnn: going on after epoch" in done.stdout

    whole, _ = finished
    assert (folder / "metrics.jsonl").read_bytes() == (
        whole / "metrics.jsonl"
    ).read_bytes()
    ours, theirs = (
        folders.read_json(f / "summary.json")["results"] for f in (folder, whole)
    )
    timeless = lambda results: {
        m: {k: v for k, v in r.items() if not k.startswith("seconds")}
        for m, r in results.items()
    }
    assert timeless(ours) == timeless(theirs)
    for model in ("sm", "ibnn"):  # the weights too
        with (
            checkpoint.Checkpoints(folder / "checkpoints" / model) as a,
            checkpoint.Checkpoints(whole / "checkpoints" / model) as b,
        ):
            ours, theirs = a.arrays(), b.arrays()
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"seconds"}:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_changed_data_is_refused(finished, command, environment, tmp_path):
    whole, _ = finished
    folder = tmp_path / "run"
    folder.mkdir()
    config = folders.read_json(whole / "config.json") | {"out": str(folder)}
    setup = folders.read_json(whole / "setup.json")
    setup["data"]["fingerprint"] = "0" * 16
    for name, value in (("config.json", config), ("setup.json", setup)):
        (folder / name).write_text(json.dumps(value))
    done = subprocess.run(
        [*command, "--out", str(folder)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "data set is not the one" in done.stderr


def test_missing_data_and_divergence(command, environment, tmp_path):
    """Errors are a line and status 1, not a traceback."""
    out = ["--out", str(tmp_path / "run")]
    missing = [
        *command[:3],
        "--dataset",
        "cifar10",
        "--data-dir",
        str(tmp_path / "none"),
        *out,
    ]
    done = subprocess.run(
        missing, env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert (
        done.returncode == 1
        and "download_and_prepare" in done.stderr
        and "Traceback" not in done.stderr
    )
    wild = [
        *command,
        "--model",
        "sm",
        "--lr-min",
        "1e30",
        "--lr-max",
        "1e30",
        "--clip-norm",
        "0",
        "--warmup-epochs",
        "0",
        "--out",
        str(tmp_path / "wild"),
    ]
    done = subprocess.run(
        wild, env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert (
        done.returncode == 1
        and "for seed" in done.stderr
        and "step" in done.stderr
        and "Traceback" not in done.stderr
    )
