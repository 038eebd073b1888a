"""How time and memory grow: neurons per group, batch, seeds, simulated devices."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

import ibnn_jax
from benchmarks import report

P, LAM = 10.0, -0.5
LINE, PIXELS = ibnn_jax.Uniform((-1,)), ibnn_jax.Uniform((-3, -2))
SIZES = {  # neurons of one group, batches, seeds, devices, repetitions
    "tiny": ((100, 1000), (2,), (2,), (2,), 1),
    "quick": ((1000, 1_000_000), (128,), (4,), (2,), 3),
    "full": (
        (1000, 10_000, 100_000, 1_000_000),
        (8, 32, 128, 512),
        (1, 2, 5, 10, 20),
        (1, 2, 4, 8),
        10,
    ),
}
COLUMNS = [
    "axis",
    "size",
    "neurons",
    "milliseconds",
    "ns per neuron",
    "MB",
    "useful %",
]


def run(size: str) -> report.Report:
    neurons, batches, seeds, devices, repetitions = SIZES[size]
    rng = np.random.default_rng(0)
    side = 10 if size == "tiny" else 28
    image = (side, side, 3)
    rows = []
    for n in neurons:
        y = 0.3 * rng.normal(size=(1, n))
        rows.append(_one("neurons", n, y, LINE, repetitions))
    for batch in batches:
        y = 0.3 * rng.normal(size=(batch, *image))
        rows.append(_one("batch", batch, y, PIXELS, repetitions))
    for count in seeds:
        widths = rng.uniform(0.05, 1, (count, 1, 1, 1, 1))
        y = widths * rng.normal(size=(count, 16, *image))
        rows.append(_one("seeds", count, y, PIXELS, repetitions, vmapped=True))
    for count in devices:
        case = {"axis": "devices (simulated)", "size": count}
        rows.append(case | _on_devices(count, side, repetitions))
    for row in rows:
        row["ns per neuron"] = 1e6 * row["milliseconds"] / row["neurons"]
    return report.Report(rows, COLUMNS, lambda figure: _draw(figure, rows))


def forward_and_backward(y, v, coupling):
    """z, the cotangent of y for the cotangent v, and the solver's steps."""

    def solve(y):
        return ibnn_jax.implicit_bias(y, LAM, P, coupling, has_stats=True)

    z, back, stats = jax.vjp(solve, y, has_aux=True)
    return z, back(v)[0], stats.steps


def _one(axis, size, y, coupling, repetitions, vmapped=False) -> dict:
    y = jnp.asarray(y, jnp.float32)
    v = jnp.ones_like(y)

    def call(y, v):
        return forward_and_backward(y, v, coupling)

    compiled = jax.jit(jax.vmap(call) if vmapped else call).lower(y, v).compile()
    steps = np.asarray(compiled(y, v)[2])
    seconds = report.seconds(compiled, y, v, repetitions=repetitions)
    return {
        "axis": axis,
        "size": size,
        "neurons": y.size,
        "milliseconds": 1e3 * seconds,
        "MB": compiled.memory_analysis().temp_size_in_bytes / 1e6,
        # The share of a shared loop that is not spent waiting for the slowest group.
        "useful %": 100 * float(steps.mean() / max(steps.max(), 1)),
    }


_CHILD = """
import sys
from benchmarks import scaling
scaling.print_sharded(*(int(a) for a in sys.argv[1:]))
"""


def _on_devices(count, side, repetitions) -> dict:
    """One batch over simulated devices, which share the same cores.

    It shows what sharding itself costs, not what it gains.
    """
    flags = f"--xla_force_host_platform_device_count={count}"
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-c", _CHILD, str(count), str(side), str(repetitions)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(
            f"the run on {count} simulated devices failed:\n{done.stderr[-2000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def print_sharded(count: int, side: int, repetitions: int) -> None:
    """In a process of its own, with its own number of devices."""
    mesh = jax.make_mesh((count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    y = 0.3 * np.random.default_rng(0).normal(size=(64, side, side, 3))
    placed = jax.sharding.NamedSharding(mesh, spec)
    y = jax.device_put(y.astype(np.float32), placed)
    call = jax.shard_map(
        lambda y, v: forward_and_backward(y, v, PIXELS),
        mesh=mesh,
        in_specs=(spec, spec),
        out_specs=spec,
        check_vma=False,
    )
    seconds = report.seconds(
        jax.jit(call), y, jnp.ones_like(y), repetitions=repetitions
    )
    print(json.dumps({"neurons": y.size, "milliseconds": 1e3 * seconds}))


def _draw(figure, rows):
    names = ("neurons", "seeds", "devices (simulated)")
    for axis, name in zip(figure.subplots(1, 3), names):
        mine = [r for r in rows if r["axis"] == name]
        axis.loglog([r["size"] for r in mine], [r["milliseconds"] for r in mine], "o-")
        axis.set(xlabel=name, ylabel="milliseconds, forward and backward")
