"""From y with axes of its own to groups [G, n] and back, and the checks on the way."""

from dataclasses import dataclass
from math import prod

import jax
import jax.numpy as jnp
from jax import Array

from ibnn_jax.core.options import real_array
from ibnn_jax.core.solution import Solution
from ibnn_jax.ibnn.couplings import Coupling, check_coupling, check_slope
from ibnn_jax.ibnn.equation import IBNNProblem


@dataclass(frozen=True)
class Layout:
    """Which axes of y are coupled.

    Args:
        batch: sizes of the uncoupled axes, in order.
        event: sizes of the coupled axes, in the coupling's order.
        axes: the coupled axes of y, not negative.
    """

    batch: tuple[int, ...]
    event: tuple[int, ...]
    axes: tuple[int, ...]

    def to_groups(self, y: Array) -> Array:
        """y with its own axes -> [G, n]."""
        y = jnp.moveaxis(y, self.axes, range(-len(self.axes), 0))
        return y.reshape(prod(self.batch), prod(self.event))

    def from_groups(self, z: Array) -> Array:
        """[G, n] -> z with the axes of y."""
        z = z.reshape(*self.batch, *self.event)
        return jnp.moveaxis(z, range(-len(self.axes), 0), self.axes)

    def per_group(self, leaf: Array) -> Array:
        """[G, ...] -> [*batch, ...]."""
        return leaf.reshape(*self.batch, *leaf.shape[1:])

    def restore(self, solution: Solution, dtype) -> Solution:
        """A Solution on groups -> one with the axes and dtype of y."""
        value = self.from_groups(solution.value).astype(dtype)
        result, stats = jax.tree.map(self.per_group, solution[1:])
        return Solution(value, result, stats)


def bind(y, lam, p, coupling: Coupling) -> tuple[IBNNProblem, Layout]:
    """Check the arguments and lay them out; half precision is solved in float32.

    Raises:
        ValueError: y is not a floating array, has too few axes or an empty group; lam
            or p is not real, does not broadcast against y, varies along a coupled
            axis, or (when its value is known) p <= 0.
    """
    check_coupling(coupling)
    y = real_array("y", y)
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise ValueError(
            f"y must have a floating dtype; got {y.dtype}. "
            "Convert it, e.g. y.astype(jnp.float32)"
        )
    axes = coupling.coupled_axes(y.ndim)
    event = tuple(y.shape[a] for a in axes)
    if 0 in event:
        raise ValueError(
            f"y of shape {y.shape} has empty groups: the coupled axes {axes} need at "
            "least one neuron"
        )
    if not all(isinstance(size, int) for size in event):
        raise ValueError(
            f"the coupled axes {axes} of y {y.shape} need sizes that are numbers; "
            "jax.export can leave the batch open, not a group"
        )
    check_slope(p)
    layout = Layout(
        tuple(s for a, s in enumerate(y.shape) if a not in axes), event, axes
    )
    op = coupling.bind(event)
    dtype = y.dtype if y.dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
    groups = layout.to_groups(y.astype(dtype))
    # Added to lam and p, so that these vary over the axes of a mesh that y varies over.
    zeros = jnp.zeros_like(groups[:, :1])
    lam = _per_group("lam", lam, y.shape, axes, dtype) + zeros
    p = _per_group("p", p, y.shape, axes, dtype) + zeros
    return IBNNProblem(groups, lam, p, op), layout


def _per_group(name: str, value, shape, axes, dtype) -> Array:
    """lam or p as [G, 1]."""
    value = real_array(name, value)
    wanted = tuple(1 if a in axes else s for a, s in enumerate(shape))
    try:
        value = jnp.broadcast_to(value.astype(dtype), wanted)
    except ValueError:
        raise ValueError(
            f"{name} of shape {value.shape} must broadcast against y {tuple(shape)} "
            f"with size 1 on the coupled axes {axes}: one value per group, "
            f"i.e. against {wanted}"
        ) from None
    return value.reshape(prod(wanted), 1)


def check_same_shape(name: str, a, other: str, b) -> None:
    """Raise ValueError where two arguments differ in shape."""
    if jnp.shape(a) != jnp.shape(b):
        raise ValueError(
            f"{name} and {other} must have one shape; "
            f"got {jnp.shape(a)} and {jnp.shape(b)}"
        )
