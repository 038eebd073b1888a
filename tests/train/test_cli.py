"""`python -m train` as a user runs it: end to end, killed and resumed, refused."""

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
FILES = {
    "config.json",
    "setup.json",
    "metrics.jsonl",
    "seconds.jsonl",
    "summary.json",
    "curves.png",
    "report.html",
    "checkpoints",
}


@pytest.fixture(scope="module")
def train(pictures, environment):
    """(folder, *options) -> what the command did, finished."""

    def run(folder, *options):
        return subprocess.run(
            command(pictures, folder, *options),
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    return run


def command(pictures, folder, *options):
    line = "--model both --seeds 2 --epochs 12 --channels 2 --batch-size 20"
    start = [sys.executable, "-m", "train", "--dataset", str(pictures)]
    return [*start, *line.split(), "--out", str(folder), *options]


@pytest.fixture(scope="module")
def finished(train, tmp_path_factory):
    """A run nobody disturbed: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = train(folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_end_to_end(finished):
    folder, text = finished
    assert FILES <= {path.name for path in folder.iterdir()}
    for words in (
        "36 training, 4 validation and 20 test images",
        "ibnn compiling epoch 1 ...",
        "left ?",
        "epochs to SM's best",
        "converged",
        "paired by seed",
        "validation images",
    ):
        assert words in text
    assert text.count(" epoch ") >= 24
    summary = folders.read_json(folder / "summary.json")
    config = folders.read_json(folder / "config.json")
    assert config["layers"] == 1 and config["epochs"] == 12
    assert summary["versions"]["jax"] and summary["device"]["platform"] == "cpu"
    assert summary["parameters"]["ibnn"] == summary["parameters"]["sm"] + 1
    assert summary["data"]["train_images"] == 36
    assert summary["differences_to_sm"]["ibnn"]["seeds"] == 2
    lines = folders.read_lines(folder / "metrics.jsonl")
    expected = [
        (model, seed, epoch)
        for model in ("sm", "ibnn")
        for epoch in range(1, 13)
        for seed in (0, 1)
    ]
    assert [(x["model"], x["seed"], x["epoch"]) for x in lines] == expected
    for line in lines:
        numbers = [v for name, v in line.items() if name != "model"]
        assert all(np.isfinite(v).all() for v in numbers)


def test_running_it_again_trains_nothing(finished, train):
    folder, _ = finished
    before = (folder / "metrics.jsonl").stat().st_mtime_ns
    done = train(folder)
    assert done.returncode == 0
    assert "finished already" in done.stdout and "epochs to SM's best" in done.stdout
    assert "epoch  1/12" not in done.stdout
    assert (folder / "metrics.jsonl").stat().st_mtime_ns == before


def test_other_options_are_refused(finished, train):
    folder, _ = finished
    done = train(folder, "--p", "3")
    assert done.returncode == 1 and "p is 10.0 there and 3.0 here" in done.stderr
    done = train(folder, "--epochs", "13")
    assert done.returncode == 1 and "only --schedule constant" in done.stderr


def test_killed_runs_resume_to_the_same_bytes(
    finished, train, pictures, environment, tmp_path
):
    """SIGKILL in the standard networks, SIGTERM a little later, SIGKILL in IBNNs."""
    folder = tmp_path / "killed"
    often, never = (["--checkpoint-seconds", seconds] for seconds in ("0", "100000"))

    def stop_when(lines, number, options):
        """Send a signal when metrics.jsonl has so many lines: (status, output)."""
        process = subprocess.Popen(
            command(pictures, folder, *options),
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        metrics = folder / "metrics.jsonl"
        while process.poll() is None:
            if metrics.exists() and metrics.read_text().count("\n") >= lines:
                break
            time.sleep(0.002)
        assert process.poll() is None, process.communicate()[0]
        process.send_signal(number)
        printed, _ = process.communicate(timeout=60)
        return process.returncode, printed

    status, printed = stop_when(6, signal.SIGKILL, often)
    assert status == -signal.SIGKILL
    status, printed = stop_when(12, signal.SIGTERM, never)
    assert status == 128 + signal.SIGTERM, printed
    assert "stopped by SIGTERM" in printed and "going on after epoch" in printed
    with checkpoint.Checkpoints(folder / "checkpoints" / "sm") as saved:
        epoch = saved.epoch
    assert epoch >= 6  # what SIGTERM saved: every line there was
    assert f"sm, {epoch} of 12 epochs are saved" in printed
    status, printed = stop_when(30, signal.SIGKILL, often)
    assert status == -signal.SIGKILL and f"sm: going on after epoch {epoch}" in printed
    done = train(folder)
    assert done.returncode == 0 and "ibnn: going on after epoch" in done.stdout

    whole, _ = finished
    assert_same_results(folder, whole)


def assert_same_results(folder, whole):
    """Metrics to the byte, results, and weights of two runs are the same."""
    for name in ("metrics.jsonl",):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    ours, theirs = (
        {
            model: {k: v for k, v in result.items() if not k.startswith("seconds")}
            for model, result in folders.read_json(f / "summary.json")[
                "results"
            ].items()
        }
        for f in (folder, whole)
    )
    assert ours == theirs
    for model in ("sm", "ibnn"):
        arrays = []
        for place in (folder, whole):
            with checkpoint.Checkpoints(place / "checkpoints" / model) as saved:
                arrays.append(saved.arrays())
        assert arrays[0].keys() == arrays[1].keys()
        for name in arrays[0].keys() - {"seconds"}:
            np.testing.assert_array_equal(arrays[0][name], arrays[1][name], name)


def test_errors_are_a_line_and_not_a_traceback(train, tmp_path):
    missing = ["--dataset", "cifar10", "--data-dir", str(tmp_path / "none")]
    done = train(tmp_path / "run", *missing)
    assert done.returncode == 1 and "download_and_prepare" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()  # nothing is left behind
    wild = "--model sm --lr-min 1e30 --lr-max 1e30 --clip-norm 0 --warmup-epochs 0"
    done = train(tmp_path / "wild", *wild.split())
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "for seed" in done.stderr and "step" in done.stderr


FILL = """
import resource, signal, sys
from train import cli
from train.runs import files, folder

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
write = files.append_text

def fill(path, text):
    if '"epoch": 3' in text:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
    write(path, text)

folder.append_text = fill
sys.exit(cli.main(sys.argv[1:]))
"""


def run_code(code, pictures, folder, *options):
    """The command after some code; nothing but its arguments is the same."""
    arguments = command(pictures, folder, "--model", "sm", *options)[3:]
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_a_full_disk_is_a_line(pictures, tmp_path):
    """Writing fails after some bytes, as on a full disk."""
    done = run_code(FILL, pictures, tmp_path / "full")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "cannot write" in done.stderr and "metrics.jsonl" in done.stderr


@pytest.mark.parametrize("missing", ["matplotlib", "orbax", "scipy"])
def test_missing_packages_are_a_line_and_leave_nothing(pictures, tmp_path, missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from train import cli; "
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    done = run_code(code, pictures, tmp_path / "run")
    assert done.returncode == 1 and "pip install -e '.[train]'" in done.stderr
    assert missing in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["tqdm", "matplotlib", "scipy"])
@pytest.mark.parametrize("command", ["train.experiments", "train experiments"])
def test_missing_packages_of_experiments_are_a_line(tmp_path, command, missing):
    module, *first = command.split()
    code = (
        f"import runpy, sys; sys.modules[{missing!r}] = None; "
        f"sys.argv[0] = {module!r}; "
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *first, "theory", "--quick", "--out", "out"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "pip install -e '.[train]'" in done.stderr
    assert missing in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
