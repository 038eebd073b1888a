"""Seeds and batches over simulated devices: the numbers of one device, also when a run
goes on with other devices.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from train.distributed import sharding

ROOT = Path(__file__).parents[2]
ON_LINUX = hasattr(os, "sched_getaffinity")
CORES = len(os.sched_getaffinity(0)) if ON_LINUX else os.cpu_count()
OPTIONS = [
    "--dataset",
    "digits",
    "--train-fraction",
    "0.2",
    "--seeds",
    "4",
    "--warmup-epochs",
    "1",
    "--batch-size",
    "32",
    # Fmt: skip
    "--model",
    "both",
    "--tol",
    "1e-5",
    "--lr-max",
    "0.002",
    "--checkpoint-seconds",
    "0",
]


def train(out, devices, *options):
    flags = (
        f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    )
    command = [sys.executable, "-m", "train", *OPTIONS, "--out", str(out), *options]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": flags},
    )
    assert done.returncode == 0, done.stderr
    lines = [
        json.loads(line)
        for line in (Path(out) / "metrics.jsonl").read_text().splitlines()
    ]
    return {(line["model"], line["epoch"], line["seed"]): line for line in lines}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys() and len(wanted) == 2 * 2 * 4
    for key, line in wanted.items():
        np.testing.assert_allclose(
            found[key]["test_loss"], line["test_loss"], rtol=2e-3
        )
        assert abs(found[key]["test_accuracy"] - line["test_accuracy"]) < 0.01
        if key[0] == "ibnn":
            np.testing.assert_allclose(found[key]["lam"], line["lam"], atol=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(tmp_path_factory.mktemp("one"), 1, "--epochs", "2")


def test_four_devices_give_the_numbers_of_one(alone, tmp_path):
    assert_same(train(tmp_path / "seeds", 4, "--epochs", "2"), alone)
    assert_same(
        train(tmp_path / "both", 4, "--epochs", "2", "--data-devices", "2"), alone
    )


def test_a_seed_that_is_left_over_is_filled_up_with_copies(alone, tmp_path):
    """4 seeds on 3 devices, of which 2 have two."""
    three = train(tmp_path / "three", 3, "--epochs", "2", "--devices", "3")
    assert_same(three, alone)


def test_a_mesh_that_does_not_come_out_even_is_refused():
    assert sharding.make_mesh(5, 1) is None
    with pytest.raises(ValueError, match="there are"):
        sharding.make_mesh(4, 4096)
    with pytest.raises(ValueError, match="at least as many devices"):
        sharding.make_mesh(4, None, 4096)
    with pytest.raises(ValueError, match="a multiple of data_devices"):
        sharding.make_mesh(4, 1, 3)


@pytest.mark.parametrize(
    "seeds, expected", [(1, 1), (3, 3), (4, 4), (5, 3), (8, 4), (100, 4)]
)
def test_no_more_devices_than_the_longest_queue_needs(seeds, expected, monkeypatch):
    devices = np.array([f"device {k}" for k in range(4)])
    monkeypatch.setattr(sharding.jax, "devices", lambda: list(devices))
    monkeypatch.setattr(sharding.jax, "local_devices", lambda _: list(devices))
    monkeypatch.setattr(sharding, "Mesh", lambda chosen, _: chosen)
    mesh = sharding.make_mesh(seeds)
    assert (1 if mesh is None else len(mesh)) == expected


def test_every_process_must_get_as_many_devices(monkeypatch):
    monkeypatch.setattr(sharding.jax, "process_count", lambda: 2)
    monkeypatch.setattr(sharding.jax, "devices", lambda: ["a", "b", "c", "d"])
    with pytest.raises(ValueError, match="take at least 2 seeds"):
        sharding.make_mesh(1)
    with pytest.raises(ValueError, match="of the 2 processes"):
        sharding.make_mesh(6, 3)


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, CORES),
        ({"JAX_NUM_CPU_DEVICES": "3"}, 3),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, 5),
    ],
    ids=str,
)
def test_every_core_is_a_device_where_nothing_else_is_said(given, expected):
    program = (
        "import sys, train.cli\n"
        "from train.distributed.cores import count_cores_as_devices\n"
        "assert 'jax' not in sys.modules  # which reads it when it is imported\n"
        "count_cores_as_devices()\n"
        "import jax\n"
        "print(jax.device_count())"
    )
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"} | given
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout.split()[-1:] == [str(expected)], done.stderr
