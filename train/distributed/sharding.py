"""Which devices a run uses: a mesh ("seed", "data"), or None for one device; and arrays to and from them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh(
    seeds: int, devices: int | None = None, data_devices: int = 1
) -> Mesh | None:
    """A mesh of devices / data_devices parts of the seeds by data_devices parts of each batch.

    devices=None takes the most devices there are for which the seeds divide evenly. Every process has as many of them.

    Raises ValueError for more devices than there are, or parts that do not come out even.
    """
    present, processes = len(jax.devices()), jax.process_count()
    fits = lambda count: (
        count % data_devices == 0
        and seeds % (count // data_devices) == 0
        and count % processes == 0
    )
    if devices is None:
        devices = next((count for count in range(present, 0, -1) if fits(count)), None)
        if devices is None and data_devices > present:
            raise ValueError(
                f"data_devices={data_devices} needs at least as many devices; there are {present}"
            )
        if devices is None:
            raise ValueError(
                f"{seeds} seeds with data_devices={data_devices} do not divide evenly over any number of {present} devices "
                f"of which each of {processes} processes has as many: take a multiple of {processes} for the seeds"
            )
    if devices > present:
        raise ValueError(
            f"devices={devices}, but there are {present}: {jax.devices()[0].platform}"
        )
    if not fits(devices):
        raise ValueError(
            f"{seeds} seeds do not divide evenly over devices={devices} with data_devices={data_devices}: devices must be "
            f"a multiple of data_devices and of the {processes} processes, and the seeds a multiple of devices / data_devices"
        )
    if devices == 1:
        return None
    # Process by process, so that the parts of a batch are neighbours.
    chosen = [
        device
        for process in range(processes)
        for device in jax.local_devices(process)[: devices // processes]
    ]
    return Mesh(np.asarray(chosen).reshape(-1, data_devices), ("seed", "data"))


def over_seeds(function, in_axes, mesh: Mesh | None):
    """function vmapped over the arguments with axis 0 in in_axes, those spread over the mesh's "seed" axis.

    Each device runs its own seeds in a program of its own: loops inside stop by themselves, and nothing is exchanged but
    what function asks of the axis "data".
    """
    mapped = jax.vmap(function, in_axes=in_axes)
    if mesh is None:
        return mapped
    seed, whole = PartitionSpec("seed"), PartitionSpec()
    specs = tuple(whole if axis is None else seed for axis in in_axes)
    return jax.shard_map(
        mapped, mesh=mesh, in_specs=specs, out_specs=seed, check_vma=False
    )


def put(tree, mesh: Mesh | None, spread: bool):
    """Host arrays, the same in every process, on the devices: by their leading axis of seeds if spread, else whole on each.

    A process sends what its own devices hold, and nothing else.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    sharding = NamedSharding(mesh, PartitionSpec("seed") if spread else PartitionSpec())
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(
            x.shape, sharding, lambda index: x[index]
        ),
        tree,
    )


def get(tree):
    """Arrays of the devices of all processes, whole, in numpy, in every process."""
    return (
        jax.device_get(tree)
        if jax.process_count() == 1
        else multihost_utils.process_allgather(tree, tiled=True)
    )
