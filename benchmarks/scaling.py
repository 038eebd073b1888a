"""How time and memory grow: in neurons per group, in batch, in seeds, and over simulated devices."""

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
SIZES = {  # neurons of one group, batches, seeds, devices, repetitions
    "tiny": ((1000, 4000), (2, 4), (1, 2), (1, 2), 1),
    "quick": ((1000, 1_000_000), (128,), (1, 4), (2,), 3),
    "full": (
        (1000, 10_000, 100_000, 1_000_000),
        (8, 32, 128, 512),
        (1, 2, 5, 10, 20),
        (1, 2, 4, 8),
        10,
    ),
}


def run(size):
    neurons, batches, seeds, devices, repetitions = SIZES[size]
    rng = np.random.default_rng(0)
    side = 28 if size != "tiny" else 14
    rows = []
    for n in neurons:
        rows.append(
            _one(
                "neurons",
                n,
                rng.normal(size=(1, n)) * 0.3,
                ibnn_jax.Uniform((-1,)),
                repetitions,
            )
        )
    for batch in batches:
        rows.append(
            _one(
                "batch",
                batch,
                rng.normal(size=(batch, side, side, 3)) * 0.3,
                ibnn_jax.Uniform((-3, -2)),
                repetitions,
            )
        )
    for count in seeds:
        y = rng.normal(size=(count, 16, side, side, 3)) * rng.uniform(
            0.05, 1, (count, 1, 1, 1, 1)
        )
        rows.append(
            _one(
                "seeds", count, y, ibnn_jax.Uniform((-3, -2)), repetitions, vmapped=True
            )
        )
    for count in devices:
        rows.append(
            {"axis": "devices (simulated)", "size": count}
            | _on_devices(count, side, repetitions)
        )
    for row in rows:
        row["ns per neuron"] = 1e6 * row["milliseconds"] / row["neurons"]
    return report.Report(
        rows,
        ["axis", "size", "neurons", "milliseconds", "ns per neuron", "MB", "useful %"],
        lambda f: _draw(f, rows),
    )


def _call(coupling, vmapped):
    def both(y, v):
        z, back, stats = jax.vjp(
            lambda y: ibnn_jax.implicit_bias(y, LAM, P, coupling, has_stats=True),
            y,
            has_aux=True,
        )
        return z, back(v)[0], stats.steps

    return jax.vmap(both) if vmapped else both


def _one(axis, size, y, coupling, repetitions, vmapped=False):
    """Forward and backward. useful: mean over largest number of solver steps, the share that a shared loop does not waste."""
    y = jnp.asarray(y, jnp.float32)
    v = jnp.ones_like(y)
    compiled = jax.jit(_call(coupling, vmapped)).lower(y, v).compile()
    steps = np.asarray(compiled(y, v)[2])
    return {
        "axis": axis, "size": size, "neurons": y.size, "milliseconds": 1e3 * report.seconds(compiled, y, v, repetitions=repetitions),
        "MB": compiled.memory_analysis().temp_size_in_bytes / 1e6, "useful %": 100 * float(steps.mean() / max(steps.max(), 1)),
    }  # fmt: skip


_CHILD = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from benchmarks import report, scaling
import ibnn_jax
count, side, repetitions = (int(a) for a in sys.argv[1:])
mesh = jax.make_mesh((count,), ("data",))
spec = PartitionSpec("data")
y = np.random.default_rng(0).normal(size=(64, side, side, 3)).astype(np.float32) * 0.3
y = jax.device_put(y, NamedSharding(mesh, spec))
call = scaling._call(ibnn_jax.Uniform((-3, -2)), False)
call = jax.jit(jax.shard_map(call, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False))
print(json.dumps({"neurons": y.size, "milliseconds": 1e3 * report.seconds(call, y, jnp.ones_like(y), repetitions=repetitions)}))
"""


def _on_devices(count, side, repetitions):
    """One batch over simulated devices, which share the same cores: what sharding itself costs, not what it gains."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", _CHILD, str(count), str(side), str(repetitions)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(
            f"the run on {count} simulated devices failed:\n{done.stderr[-2000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def _draw(figure, rows):
    for axis, name in zip(
        figure.subplots(1, 3), ("neurons", "seeds", "devices (simulated)")
    ):
        mine = [r for r in rows if r["axis"] == name]
        axis.loglog([r["size"] for r in mine], [r["milliseconds"] for r in mine], "o-")
        axis.set(xlabel=name, ylabel="milliseconds, forward and backward")
