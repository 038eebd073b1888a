"""What the arguments of an attack must be, as far as their values are known."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from ibnn_jax.core.options import is_known, real_array


def scalar(name: str, value: Any, dtype: Any, *, positive: bool) -> Array:
    """A finite real number, not negative or positive, in the dtype of the images."""
    array = real_array(name, value)
    wanted = f"a finite number, {'greater than' if positive else 'at least'} 0"
    if array.shape != ():
        raise ValueError(f"{name} must be {wanted}, a scalar; got {value!r}")
    if is_known(value):
        number = float(value)
        if not np.isfinite(number) or number < 0 or (positive and number == 0):
            raise ValueError(f"{name} must be {wanted}; got {value}")
    return array.astype(dtype)


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
