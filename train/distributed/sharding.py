"""Which devices a run uses, and arrays to and from them.

The devices form a mesh ("seed", "data"); None stands for a single device.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh(
    seeds: int, devices: int | None = None, data_devices: int = 1
) -> Mesh | None:
    """A mesh that spreads the seeds, and each batch over data_devices of its devices.

    Where the seeds do not divide evenly, copies of the last one fill up (`put`).

    Args:
        devices: None takes as many as leave each the fewest seeds, and no more than
            that needs. Every process has as many of them.

    Raises:
        ValueError: there are fewer devices, some have no seed, or the parts of a batch
            or the processes do not come out even.
    """
    present, processes = len(jax.devices()), jax.process_count()

    def fits(count: int) -> bool:
        even = count % data_devices == 0 and count % processes == 0
        return even and count <= seeds * data_devices

    def most_seeds(count: int) -> int:
        return -(-seeds // (count // data_devices))

    if devices is None:
        if data_devices > present:
            raise ValueError(
                f"data_devices={data_devices} needs at least as many devices; there "
                f"are {present}"
            )
        counts = list(filter(fits, range(1, present + 1)))
        if not counts:
            raise ValueError(
                f"{seeds} seeds with data_devices={data_devices} are too few for "
                f"{processes} processes, each with as many of {present} devices: take "
                f"at least {processes} seeds"
            )
        devices = min(counts, key=lambda count: (most_seeds(count), count))
    if devices > present:
        raise ValueError(
            f"devices={devices}, but there are {present}: {jax.devices()[0].platform}"
        )
    if not fits(devices):
        of_processes = f" and of the {processes} processes" if processes > 1 else ""
        raise ValueError(
            f"devices={devices} do not suit {seeds} seeds with data_devices="
            f"{data_devices}: it must be a multiple of data_devices{of_processes}, and "
            "at most seeds * data_devices"
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


def places(seeds: int, mesh: Mesh | None) -> int:
    """The seeds and the copies of the last one that `put` adds."""
    parts = mesh.shape["seed"] if mesh else 1
    return -(-seeds // parts) * parts


def put(tree, mesh: Mesh | None, spread: bool):
    """Host arrays, the same in every process, on the devices.

    Args:
        spread: by their leading axis of seeds, after which copies of the last seed
            follow until all devices have as many; or whole on each device.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    sharding = NamedSharding(mesh, PartitionSpec("seed") if spread else PartitionSpec())

    def send(x):
        if spread:
            copies = places(len(x), mesh) - len(x)
            x = np.concatenate([x, np.repeat(x[-1:], copies, 0)])
        # A process sends what its own devices hold, and nothing else.
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(send, tree)


def get(tree, seeds: int):
    """Arrays of the devices of all processes, in numpy, in every process.

    Whole, but for the copies of the last seed that `put` made.
    """
    if jax.process_count() == 1:
        whole = jax.device_get(tree)
    else:
        whole = multihost_utils.process_allgather(tree, tiled=True)
    return jax.tree.map(lambda x: x[:seeds], whole)
