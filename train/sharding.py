"""Which devices a run uses: a mesh ("seed", "data"), or None for one device."""

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec


def make_mesh(seeds: int, devices: int | None = None, data_devices: int = 1) -> Mesh | None:
    """A mesh of devices / data_devices parts of the seeds by data_devices parts of each batch.

    devices=None takes the most devices there are for which the seeds divide evenly.

    Raises ValueError for more devices than there are, or parts that do not come out even.
    """
    present = len(jax.devices())
    fits = lambda count: count % data_devices == 0 and seeds % (count // data_devices) == 0
    if devices is None:
        devices = next((count for count in range(present, 0, -1) if fits(count)), None)
        if devices is None:
            raise ValueError(f"data_devices={data_devices} needs at least as many devices; there are {present}")
    if devices > present:
        raise ValueError(f"devices={devices}, but there are {present}: {jax.devices()[0].platform}")
    if not fits(devices):
        raise ValueError(f"{seeds} seeds do not divide evenly over devices={devices} with data_devices={data_devices}: devices must be "
                         "a multiple of data_devices, and the seeds a multiple of devices / data_devices")
    if devices == 1:
        return None
    grid = np.asarray(jax.devices()[:devices]).reshape(-1, data_devices)
    return Mesh(grid, ("seed", "data"))


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
    return jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=seed, check_vma=False)
