"""Functions on explicit meshes: every device treats the groups that it holds.

Groups do not see each other, so nothing is exchanged in the forward pass; what devices
share (a replicated lam, a w) gets the sum of their gradients from `jax.shard_map`.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.sharding import PartitionSpec

from ibnn_jax.core.batching import explicit_spec
from ibnn_jax.core.options import real_array
from ibnn_jax.core.solution import Solution
from ibnn_jax.ibnn.couplings import Coupling, Dense, check_coupling

Specs = Callable[[PartitionSpec, PartitionSpec], Any]


def of_solution(like_y: PartitionSpec, per_group: PartitionSpec) -> Any:
    """How a Solution lies on the mesh."""
    return Solution(like_y, per_group, per_group)  # type: ignore


def over_mesh(
    local: Callable,
    y: Array,
    lam,
    p,
    coupling: Coupling,
    other: Array | None = None,
    *,
    returns: Specs = of_solution,
):
    """local(y, lam, p, coupling, other), on each device's part of an explicit mesh.

    Where y is not sharded over an explicit axis it is called as it is.

    Args:
        other: an array of the shape of y.
        returns: (how y lies on the mesh, how one number per group does) -> how what
            local returns does.

    Raises:
        ValueError: no coupling; lam or p is not real; an axis of y that is coupled is
            sharded.
    """
    check_coupling(coupling)
    lam, p = real_array("lam", lam), real_array("p", p)
    spec = explicit_spec(y)
    if not any(spec):
        return local(y, lam, p, coupling, other)
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

    def on_device(y, lam, p, w, negative, other):
        mine = coupling
        if isinstance(coupling, Dense):
            known = coupling.negative if negative is None else negative
            mine = Dense.unchecked(w, coupling.sigma, known)
        return local(y, lam, p, mine, other)

    whole = PartitionSpec()
    mapped = jax.shard_map(
        on_device,
        mesh=jax.typeof(y).sharding.mesh,
        in_specs=(spec, lam_spec, p_spec, whole, whole, spec),
        out_specs=returns(spec, groups),
    )
    return mapped(y, lam, p, w, negative, other)


def _beside(value: Array, y: Array, spec: PartitionSpec) -> tuple[Array, PartitionSpec]:
    """lam or p laid out as y is, along the axes on which it has more than one value."""
    if value.ndim > y.ndim:
        return value, PartitionSpec()  # refused by `bind`, with the reason
    own = spec[y.ndim - value.ndim :]
    own = PartitionSpec(*(s if n > 1 else None for s, n in zip(own, value.shape)))
    return (jax.sharding.reshard(value, own) if value.ndim else value), own
