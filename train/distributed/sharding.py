"""Which devices a run uses, and arrays to and from them.

The devices form a mesh ("seed", "data"); None stands for a single device.
"""

import dataclasses
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def count_cores_as_devices() -> None:
    """Make a device of every CPU core, so that the seeds of a run are spread over them.

    XLA gives two cores to one program, but a solver's small operations use hardly more
    than one. To be called before JAX starts. A number of devices that the user has set,
    by JAX_NUM_CPU_DEVICES or in XLA_FLAGS, stays.
    """
    given = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if given or jax.config.jax_num_cpu_devices != -1:  # pyright: ignore
        return
    of_process = getattr(os, "sched_getaffinity", None)  # not everywhere
    cores = len(of_process(0)) if of_process else os.cpu_count() or 1
    jax.config.update("jax_num_cpu_devices", cores)


def make_mesh(
    seeds: int, devices: int | None = None, data_devices: int = 1
) -> Mesh | None:
    """A mesh that spreads the seeds, and each batch over data_devices of its devices.

    Args:
        devices: None takes the most there are for which the seeds divide evenly. Every
            process has as many of them.

    Raises:
        ValueError: there are fewer devices, or the parts do not come out even.
    """
    present, processes = len(jax.devices()), jax.process_count()

    def fits(count: int) -> bool:
        return (
            count % data_devices == 0
            and seeds % (count // data_devices) == 0
            and count % processes == 0
        )

    if devices is None:
        devices = next((count for count in range(present, 0, -1) if fits(count)), None)
        if devices is None and data_devices > present:
            raise ValueError(
                f"data_devices={data_devices} needs at least as many devices; there "
                f"are {present}"
            )
        if devices is None:
            raise ValueError(
                f"{seeds} seeds with data_devices={data_devices} do not divide evenly "
                f"over any number of {present} devices of which each of {processes} "
                f"processes has as many: take a multiple of {processes} for the seeds"
            )
    if devices > present:
        raise ValueError(
            f"devices={devices}, but there are {present}: {jax.devices()[0].platform}"
        )
    if not fits(devices):
        raise ValueError(
            f"{seeds} seeds do not divide evenly over devices={devices} with "
            f"data_devices={data_devices}: devices must be a multiple of data_devices "
            f"and of the {processes} processes, and the seeds a multiple of devices / "
            "data_devices"
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


@dataclasses.dataclass(frozen=True)
class DataAxis:
    """The mesh axis that each batch is spread over; its name is None without one."""

    name: str | None
    parts: int

    @classmethod
    def of(cls, mesh: Mesh | None) -> "DataAxis":
        parts = mesh.shape["data"] if mesh else 1
        return cls("data" if parts > 1 else None, parts)

    def my_share(self, rows: jax.Array) -> jax.Array:
        """This device's part of the last axis of rows."""
        if self.name is None:
            return rows
        size = rows.shape[-1] // self.parts
        start = jax.lax.axis_index(self.name) * size
        return jax.lax.dynamic_slice_in_dim(rows, start, size, -1)

    def each_its_own(self, tree):
        """The same values, of which each device then has a gradient of its own.

        Without it a gradient of what all devices share is summed over them already.
        """
        if self.name is None:
            return tree
        return jax.lax.pcast(tree, self.name, to="varying")

    def mean(self, tree):
        return self._over(jax.lax.pmean, tree)

    def sum(self, tree):
        return self._over(jax.lax.psum, tree)

    def max(self, tree):
        return self._over(jax.lax.pmax, tree)

    def _over(self, reduce: Callable, tree):
        if self.name is None:
            return tree
        return jax.tree.map(lambda x: reduce(x, self.name), tree)


def over_seeds(function: Callable, in_axes: tuple, mesh: Mesh | None) -> Callable:
    """function vmapped over the arguments with axis 0 in in_axes.

    On a mesh these are spread over its "seed" axis. Each device runs its own seeds in a
    program of its own: loops inside stop by themselves, and nothing is exchanged but
    what function asks of the axis "data".
    """
    mapped = jax.vmap(function, in_axes=in_axes)
    if mesh is None:
        return mapped
    seed, whole = PartitionSpec("seed"), PartitionSpec()
    specs = tuple(whole if axis is None else seed for axis in in_axes)
    return jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=seed)


def put(tree, mesh: Mesh | None, spread: bool):
    """Host arrays, the same in every process, on the devices.

    Args:
        spread: by their leading axis of seeds, or whole on each device.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    sharding = NamedSharding(mesh, PartitionSpec("seed") if spread else PartitionSpec())

    def send(x):
        # A process sends what its own devices hold, and nothing else.
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(send, tree)


def get(tree):
    """Arrays of the devices of all processes, whole, in numpy, in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
