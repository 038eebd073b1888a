"""Solves under shard_map and on explicit meshes equal those of one device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


CASES = (
    "shard_map explicit functions vmapped modules margins nemon_shard_map "
    "made_on_the_mesh"
).split()


@pytest.mark.parametrize("case", CASES)
def test_four_devices(case):
    """In a process of its own: the number of devices is fixed when jax starts."""
    flags = "--xla_force_host_platform_device_count=4 " + os.environ["XLA_FLAGS"]
    done = subprocess.run(
        [sys.executable, HERE / "on_four_devices.py", case],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(HERE.parents[1])},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
