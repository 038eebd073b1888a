"""Attacks over two devices, in a process of its own that is told to have two."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
from functools import partial
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from ibnn_jax.attacks import pgd, pixle

attack = {
    "l2": partial(pgd, eps=0.1, steps=2, norm="l2"),
    "random": partial(pixle, restarts=1, iterations=2, patch=(2, 2), mapping="random"),
}[NAME]
weights = jax.random.normal(jax.random.key(1), (2, 16, 3))
images = jax.random.uniform(jax.random.key(0), (4, 4, 4, 1))
labels, key = jnp.array([0, 1, 2, 0]), jax.random.key(0)

def run(w, images, labels):
    return attack(lambda x: x.reshape(x.shape[0], 16) @ w, images, labels, key).images

expected = jnp.stack([run(w, images, labels) for w in weights])
shared = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
explicit = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Explicit,))

# A network on each device, the images on both.
networks = jax.shard_map(
    lambda w: run(w[0], images, labels)[None],
    mesh=shared, in_specs=P("d"), out_specs=P("d"),
)
np.testing.assert_allclose(jax.jit(networks)(weights), expected, atol=1e-6)

# A share of the images on each device, each with the same random numbers.
batch = jax.shard_map(
    lambda x, y: run(weights[0], x, y),
    mesh=shared, in_specs=P("d"), out_specs=P("d"),
)
halves = [run(weights[0], images[i : i + 2], labels[i : i + 2]) for i in (0, 2)]
found = jax.jit(batch)(images, labels)
np.testing.assert_allclose(found, jnp.concatenate(halves), atol=1e-6)

# Images that carry their sharding in their type.
with jax.set_mesh(explicit):
    spread = partial(jax.device_put, device=NamedSharding(explicit, P("d")))
    found = run(weights[0], spread(images), spread(labels))
np.testing.assert_allclose(found, expected[0], atol=1e-6)
"""


@pytest.mark.parametrize("name", ["l2", "random"])
def test_an_attack_over_devices_is_that_of_each_network_and_image(name):
    flags = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    )
    subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("NAME", repr(name))],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        check=True,
    )
