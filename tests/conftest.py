"""Fixtures shared by all tests; float64 is enabled, and a test of float32 asks for it
by dtype.
"""

import os
from pathlib import Path

import jaxlib

# The tests are many small programs: compiling them takes far longer than running them.
# Read when jax starts, also by the processes that tests start. XLA's older way of
# compiling fusions takes less than half as long; later versions do not have it, and a
# flag that is not known ends the process.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
    + (
        " --xla_cpu_use_fusion_emitters=false"
        if jaxlib.version.__version_info__ < (0, 11)
        else ""
    ),
)

import jax
import numpy as np
import pytest

from ibnn_jax import Uniform, Window

jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="module", autouse=True)
def release_programs():
    """A file's programs are not used by the next one, and a process can hold only so
    many.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)


ACCELERATORS = {"cuda": ("NVIDIA H200", "gpu"), "tpu": ("TPU v5 lite", "tpu")}


def device_that_is_not_here(platform):
    """The context in which programs are traced for such a device."""
    kind, backend = ACCELERATORS[platform]
    device = jax.sharding.AbstractDevice(kind, None, backend)
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


@pytest.fixture(scope="session")
def traced_for():
    """platform -> the context in which programs are traced for it."""
    return device_that_is_not_here


@pytest.fixture(scope="session")
def lowered():
    """(platform, f, *arguments) -> the text of f lowered for a device that need not
    be there.
    """

    def lower(platform, f, *arguments) -> str:
        with device_that_is_not_here(platform):
            traced = jax.jit(f).trace(*arguments)
            return traced.lower(lowering_platforms=(platform,)).as_text()

    return lower


@pytest.fixture
def strict_ranks():
    """Arrays of different rank must be broadcast explicitly."""
    with jax.numpy_rank_promotion("raise"):
        yield


GOLDEN = {  # file -> its coupling
    "dense_D16": Uniform((-1,)),
    "conv_C3_8x8_perchannel": Uniform((-2, -1)),
    "conv_C3_8x8_local5x5": Window((5, 5), axes=(-2, -1)),
}


class Golden:
    """One reference file with its grid spelled out: y, v, z, dL_dy [seed, lam, p,
    *event]; lam, p with size 1 on event.
    """

    def __init__(self, name):
        with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as data:
            arrays = {k: data[k] for k in data.files}
        self.name, self.coupling = name, GOLDEN[name]
        self.z, self.dL_dy, self.dL_dlam, self.dL_dp = (
            arrays[k] for k in ("z", "dL_dy", "dL_dlam", "dL_dp")
        )
        self.grid = self.z.shape[:3]
        self.y, self.v = (
            np.broadcast_to(arrays[k][:, None, None], self.z.shape) for k in ("y", "v")
        )
        ones = (1,) * (self.z.ndim - 3)
        self.lam = np.broadcast_to(
            arrays["lam"].reshape(1, -1, 1, *ones), (*self.grid, *ones)
        )
        self.p = np.broadcast_to(
            arrays["p"].reshape(1, 1, -1, *ones), (*self.grid, *ones)
        )


@pytest.fixture(scope="session", params=list(GOLDEN))
def golden(request):
    return Golden(request.param)


@pytest.fixture(scope="session")
def golden_of():
    """name -> Golden, for tests that need one file."""
    return Golden
