"""Runs of two processes on this machine: the numbers of one process, one folder, one
word on stopping; and moves between them.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from train.runs import folder as folders

ROOT = Path(__file__).parents[2]
EPOCHS = 10
OPTIONS = [
    "--dataset",
    "digits",
    "--train-fraction",
    "0.1",
    "--seeds",
    "4",
    "--warmup-epochs",
    "1",
    "--batch-size",
    "32",
    # Fmt: skip
    "--model",
    "ibnn",
    "--tol",
    "1e-5",
    "--lr-max",
    "0.002",
    "--epochs",
    str(EPOCHS),
]


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


def start(environment, out, *options, devices=1):
    flags = {
        "XLA_FLAGS": f"{environment['XLA_FLAGS']} "
        f"--xla_force_host_platform_device_count={devices}"
    }
    command = [sys.executable, "-m", "train", *OPTIONS, "--out", str(out), *options]
    return subprocess.Popen(
        command,
        env=environment | flags,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def start_two(environment, out, *options, own=((), ()), devices=1):
    """Two processes given each other's address; own: options of each."""
    address = [
        "--distributed",
        "--coordinator",
        f"localhost:{free_port()}",
        "--processes",
        "2",
        "--process",
    ]
    return [
        start(environment, out, *options, *address, str(i), *own[i], devices=devices)
        for i in (0, 1)
    ]


def start_two_by_slurm(environment, out, *options):
    """Two processes that srun could have started."""
    slurm = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "JAX_COORDINATOR_PORT": str(free_port()),
    }
    ranks = [{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in (0, 1)]
    return [
        start(environment | slurm | rank, out, "--distributed", *options)
        for rank in ranks
    ]


def end(*started):
    """[(exit status, stdout, stderr)], waited for; none outlives the test."""
    try:
        printed = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        (process.returncode, *texts)
        for process, texts in zip(started, printed, strict=True)
    ]


def stop(told, out, *others, epochs):
    """Send SIGTERM to one of the processes when so many epochs are written; what `end`
    gives for all.
    """
    while all(process.poll() is None for process in (told, *others)):
        if len(folders.read_lines(out / "metrics.jsonl")) >= 4 * epochs:
            break
        time.sleep(0.01)
    told.send_signal(signal.SIGTERM)
    return end(told, *others)


def assert_same(out, wanted):
    found, wanted = folders.read(out)["ibnn"], folders.read(wanted)["ibnn"]
    assert found["test_loss"].shape == (4, EPOCHS)
    np.testing.assert_allclose(found["train_loss"], wanted["train_loss"], rtol=2e-3)
    np.testing.assert_allclose(found["test_loss"], wanted["test_loss"], rtol=2e-3)
    np.testing.assert_allclose(
        found["test_accuracy"], wanted["test_accuracy"], atol=0.01
    )
    np.testing.assert_allclose(found["lam"], wanted["lam"], atol=1e-4)


@pytest.fixture(scope="module")
def alone(environment, tmp_path_factory):
    """The folder of a run of one process on one device."""
    out = tmp_path_factory.mktemp("alone")
    ((status, _, error),) = end(start(environment, out))
    assert status == 0, error
    return out


def test_two_processes_that_share_every_batch_give_the_numbers_of_one(
    alone, environment, tmp_path
):
    out = tmp_path / "run"
    first, second = end(*start_two(environment, out, "--data-devices", "2"))
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert_same(out, alone)
    assert "2 processes" in first[1] and "converged" in first[1]
    assert "epoch" not in second[1] and "converged" not in second[1]
    assert folders.read_json(out / "setup.json")["device"]["processes"] == 2


def test_a_run_moves_between_processes_and_devices(alone, environment, tmp_path):
    """Four devices; SIGTERM; two processes, each with two of the seeds; SIGTERM to one
    of them; one device.
    """
    out = tmp_path / "run"
    (four,) = stop(start(environment, out, devices=4), out, epochs=2)
    assert four[0] == 128 + signal.SIGTERM, four[2]

    zero, one = start_two_by_slurm(environment, out)
    second, first = stop(one, out, zero, epochs=5)
    assert first[0] == second[0] == 128 + signal.SIGTERM, first[2] + second[2]
    assert (
        "going on after epoch" in first[1]
        and "stopped by SIGTERM" in first[2]
        and "stopped" not in second[2]
    )

    (last,) = end(start(environment, out))
    assert last[0] == 0 and "going on after epoch" in last[1], last[2]
    assert_same(out, alone)


def test_processes_with_different_options_are_refused(environment, tmp_path):
    out = tmp_path / "run"
    first, second = end(*start_two(environment, out, own=(("--p", "3"), ())))
    assert (
        first[0] == second[0] == 1
        and "processes 0 and 1 were started with different options: p is 3.0 and 10.0"
        in first[2]
    )
    assert "Traceback" not in first[2] + second[2] and not out.exists()


def test_without_a_cluster_the_addresses_are_asked_for(environment, tmp_path):
    bare = {
        name: value
        for name, value in environment.items()
        if not name.startswith(("SLURM", "OMPI", "JAX_COORDINATOR"))
    }
    ((status, _, error),) = end(start(bare, tmp_path / "run", "--distributed"))
    assert (
        status == 1 and "--coordinator HOST:PORT" in error and "Traceback" not in error
    )
