"""Class labels: one integer per image, in 0..classes-1 as far as that is known."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int

from ibnn_jax.core.options import is_known


def integer_labels(labels: Any, count: int) -> Int[Array, "N"]:
    """The labels; ValueError where they are not an array of count integers."""
    dtype, shape = getattr(labels, "dtype", None), getattr(labels, "shape", ())
    if (
        dtype is None
        or not jnp.issubdtype(dtype, jnp.integer)
        or tuple(shape) != (count,)
    ):
        given = type(labels).__name__ if dtype is None else f"{dtype}{list(shape)}"
        raise ValueError(
            f"labels must be an array of {count} integers, one per image; got {given}"
        )
    return labels


def class_labels(labels: Int[Array, "N"], classes: int) -> Int[Array, "N"]:
    """Labels as int32; a traced one outside 0..classes-1 becomes -1.

    Raises:
        ValueError: the labels are known, and not all in 0..classes-1.
    """
    if is_known(labels) and len(labels):
        numbers = np.asarray(labels)  # not by jax, which cuts off bits of an int64
        if numbers.min() < 0 or numbers.max() >= classes:
            raise ValueError(
                f"labels must be in 0..{classes - 1}, the classes of the network; got "
                f"values from {numbers.min()} to {numbers.max()}"
            )
    largest = min(classes - 1, int(jnp.iinfo(labels.dtype).max))
    valid = (labels >= 0) & (labels <= largest)
    return jnp.where(valid, jnp.asarray(labels).astype(jnp.int32), -1)
