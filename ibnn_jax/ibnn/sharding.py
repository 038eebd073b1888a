"""Solves on explicit meshes: every device solves the groups that it holds.

Groups do not see each other, so nothing is exchanged in the forward pass; what devices
share (a replicated lam, a w) gets the sum of their gradients from `jax.shard_map`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from ibnn_jax.core.batching import explicit_spec
from ibnn_jax.core.solution import Solution
from ibnn_jax.ibnn.couplings import Coupling, Dense

Local = Callable[..., Solution]  # (y, lam, p, coupling, start) -> Solution


def over_mesh(local: Local, y, lam, p, coupling: Coupling, start) -> Solution:
    """local(y, lam, p, coupling, start), on each device's part of an explicit mesh.

    Where y is not sharded over an explicit axis it is called as it is.

    Raises:
        ValueError: an axis of y that is coupled is sharded.
    """
    spec = explicit_spec(y)
    if not any(spec):
        return local(y, lam, p, coupling, start)
    coupled = coupling.coupled_axes(y.ndim)
    for axis in coupled:
        if spec[axis] is not None:
            raise ValueError(
                f"axis {axis} of y {y.shape} is coupled and sharded over "
                f"{spec[axis]!r}: a group has to lie on one device. Shard the batch, "
                "or gather the axis first: jax.sharding.reshard(y, spec)"
            )
    groups = PartitionSpec(*(s for a, s in enumerate(spec) if a not in coupled))
    lam, lam_spec = _beside(lam, y, spec)
    p, p_spec = _beside(p, y, spec)
    # Arrays of the mesh have to come in as arguments; numbers stay known.
    w = coupling.w if isinstance(coupling, Dense) else None
    negative = coupling.negative if isinstance(coupling, Dense) else None
    negative = negative if isinstance(negative, Array) else None

    def on_device(y, lam, p, w, negative, start):
        mine = coupling
        if isinstance(coupling, Dense):
            known = coupling.negative if negative is None else negative
            mine = Dense.unchecked(w, coupling.sigma, known)
        return local(y, lam, p, mine, start)

    whole = PartitionSpec()
    mapped = jax.shard_map(
        on_device,
        mesh=jax.typeof(y).sharding.mesh,
        in_specs=(spec, lam_spec, p_spec, whole, whole, spec),
        out_specs=Solution(spec, groups, groups),  # type: ignore
    )
    return mapped(y, lam, p, w, negative, start)


def _beside(value, y: Array, spec: PartitionSpec) -> tuple[Array, PartitionSpec]:
    """lam or p laid out as y is, along the axes on which it has more than one value."""
    value = jnp.asarray(value)
    if value.ndim > y.ndim:
        return value, PartitionSpec()  # refused by `bind`, with the reason
    own = spec[y.ndim - value.ndim :]
    own = PartitionSpec(*(s if n > 1 else None for s, n in zip(own, value.shape)))
    return (jax.sharding.reshard(value, own) if value.ndim else value), own
