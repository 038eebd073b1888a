"""What the arguments of an attack must be, as far as their values are known."""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer


def is_known(value: Any) -> bool:
    """Whether the numbers can be read: not traced, and all on this process."""
    return not isinstance(value, Tracer) and getattr(
        value, "is_fully_addressable", True
    )


def count(name: str, value: Any) -> int:
    """A whole number, at least 1."""
    try:
        whole = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        whole = None
    if whole is None or whole < 1:
        raise ValueError(f"{name} must be an integer, at least 1; got {value!r}")
    return whole


def scalar(name: str, value: Any, dtype: Any, *, positive: bool) -> Array:
    """A finite real number, not negative or positive, in the dtype of the images."""
    wanted = f"a finite number, {'greater than' if positive else 'at least'} 0"
    try:
        array = value if isinstance(value, jax.Array) else np.asarray(value)
        kinds = (jnp.floating, jnp.integer)
        real = any(jnp.issubdtype(array.dtype, kind) for kind in kinds)
    except (TypeError, ValueError):
        real = False
    if not real or array.shape != ():
        raise ValueError(f"{name} must be {wanted}, a scalar; got {value!r}")
    if is_known(array):
        number = float(array)
        if not np.isfinite(number) or number < 0 or (positive and number == 0):
            raise ValueError(f"{name} must be {wanted}; got {value}")
    return jnp.asarray(array, dtype)


def positive(name: str, value: Any) -> None:
    """Real numbers of any shape, greater than 0."""
    numbers = value if isinstance(value, jax.Array) else np.asarray(value)
    kinds = (jnp.floating, jnp.integer)
    if not any(jnp.issubdtype(numbers.dtype, kind) for kind in kinds):
        raise ValueError(f"{name} must be a real number; got {value!r}")
    if is_known(numbers) and not (np.asarray(numbers) > 0).all():
        raise ValueError(f"{name} must be greater than 0; got {value}")


def floating_array(name: str, value: Any) -> Array:
    """A floating array [N, ...] with at least one entry for each of the N."""
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        raise ValueError(
            f"{name} must be an array [N, ...]; got {type(value).__name__}: convert it "
            "by jnp.asarray"
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"{name} must be floating; got {value.dtype}: convert it, bytes by "
            f"{name}.astype(jnp.float32) / 255"
        )
    if len(value.shape) < 1 or 0 in value.shape[1:]:
        raise ValueError(
            f"{name} must be [N, ...], none of them empty; got {value.shape}"
        )
    return jnp.asarray(value)


def within_bounds(images: Array, bounds: Any) -> tuple[Array, Array]:
    """The smallest and largest pixel value as arrays that broadcast against images."""
    try:
        low, high = (_bound(b, images.shape[1:]) for b in bounds)
    except (TypeError, ValueError):
        raise ValueError(
            "bounds must be the smallest and the largest pixel value, two numbers or "
            f"two arrays that broadcast against one image {images.shape[1:]}; got "
            f"{bounds!r}"
        ) from None
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise ValueError(
            f"bounds must be finite, and the smallest value the first; got {bounds!r}"
        )
    if is_known(images) and len(images):
        _check_range(images, low, high)
    return jnp.asarray(low, images.dtype), jnp.asarray(high, images.dtype)


def _bound(value, shape):
    """[1, ...] of the rank of the images."""
    if isinstance(value, str | bool | Tracer):
        raise TypeError
    value = np.asarray(value, np.float64)
    np.broadcast_to(value, shape)
    return value.reshape((1,) * (1 + len(shape) - value.ndim) + value.shape)


def _check_range(images, low, high):
    pixels = np.asarray(images)
    least, most = (np.asarray(f(0), np.float64) for f in (pixels.min, pixels.max))
    # Bounds such as (0 - mean) / std are met up to the rounding of the images.
    slack = 4 * float(jnp.finfo(images.dtype).eps) * np.maximum(abs(low), abs(high))
    if not ((least >= low - slack) & (most <= high + slack)).all():
        given = f"{least.min():g} to {most.max():g}"
        raise ValueError(
            f"images must be within bounds, {low.min():g} to {high.max():g}; got "
            f"values from {given}: rescale the images, or pass their bounds"
        )


def integer_labels(labels: Any, images: Array) -> Array:
    """One integer per image."""
    dtype, shape = getattr(labels, "dtype", None), getattr(labels, "shape", ())
    if (
        dtype is None
        or not jnp.issubdtype(dtype, jnp.integer)
        or tuple(shape) != images.shape[:1]
    ):
        given = type(labels).__name__ if dtype is None else f"{dtype}{list(shape)}"
        raise ValueError(
            f"labels must be an array of {len(images)} integers, one per image; got "
            f"{given}"
        )
    return labels


def class_labels(labels: Any, classes: int) -> Array:
    """Labels in 0..classes-1 as int32; -1 for any other one that is not known."""
    if is_known(labels):
        numbers = np.asarray(labels)
        if numbers.min() < 0 or numbers.max() >= classes:
            raise ValueError(
                f"labels must be in 0..{classes - 1}, the classes of the network; got "
                f"values from {numbers.min()} to {numbers.max()}"
            )
    largest = min(classes - 1, int(jnp.iinfo(labels.dtype).max))
    valid = (labels >= 0) & (labels <= largest)
    return jnp.where(valid, jnp.asarray(labels).astype(jnp.int32), -1)


def random_key(key: Any) -> Array:
    """A single key of jax.random."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", ())
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if typed and shape == ():
        return key
    if dtype == jnp.uint32 and shape in ((2,), (4,)):
        return jnp.asarray(key)
    given = type(key).__name__ if dtype is None else f"{dtype}{list(shape)}"
    raise ValueError(f"key must be one key, as jax.random.key(0); got {given}")


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of a few words."""
    if value not in choices:
        words = " or ".join(f'"{c}"' for c in choices)
        raise ValueError(f"{name} must be {words}; got {value!r}")
    return value
