"""Checks of options: concrete numbers of NumPy and JAX become Python's; whatever is no
number of its kind is refused when it is given, and so is an array that is none.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.core import Tracer


def settle(options: Any, **checked: Any) -> None:
    """Write the checked values into a frozen dataclass, from its `__post_init__`."""
    for name, value in checked.items():
        object.__setattr__(options, name, value)


def check_tol(tol, name: str = "tol") -> float | None:
    """tol as a float; ValueError where it is not a positive number."""
    if tol is None:
        return None
    number = check_number(name, tol, " or None")
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be positive; got {tol}")
    return number


def check_steps(name: str, steps) -> int | None:
    """steps as an int; ValueError where it is not a whole number of at least 1."""
    return None if steps is None else check_count(name, steps, " or None")


def check_count(name: str, count, otherwise: str = "", least: int = 1) -> int:
    """count as an int; ValueError where it is no whole number, or less than least."""
    number = python_number(count)
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"{name} must be a whole number{otherwise}; got {count!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}; got {count}")
    return number


def check_number(name: str, number, otherwise: str = "") -> float:
    """number as a float; ValueError where it is no number, or NaN."""
    plain = python_number(number)
    if isinstance(plain, bool) or not isinstance(plain, (int, float)):
        raise ValueError(f"{name} must be a number{otherwise}; got {number!r}")
    if math.isnan(plain):
        raise ValueError(f"{name} must be a number{otherwise}; got nan")
    return float(plain)


def check_flag(name: str, flag) -> bool:
    """flag as a bool; ValueError where it is none."""
    plain = python_number(flag)
    if not isinstance(plain, bool):
        raise ValueError(f"{name} must be True or False; got {flag!r}")
    return plain


def check_between(
    name: str, number, low: float, high: float, *, closed: bool = False
) -> float:
    """number as a float in (low, high), or (low, high] if closed; else ValueError."""
    plain = check_number(name, number)
    if not (low < plain < high or (closed and plain == high)):
        end = "]" if closed else ")"
        raise ValueError(f"{name} must be in ({low}, {high}{end}; got {number!r}")
    return plain


def real_array(name: str, value: Any) -> Array:
    """value as a real array; ValueError where it is none."""
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError, OverflowError):
        dtype = getattr(value, "dtype", None)
        given = f"{value!r:.60}" if dtype is None else f"dtype {dtype}"
        raise ValueError(f"{name} must be real numbers; got {given}") from None
    if not any(jnp.issubdtype(array.dtype, k) for k in (jnp.floating, jnp.integer)):
        raise ValueError(f"{name} must be real; got dtype {array.dtype}")
    return array


def is_known(value: Any) -> bool:
    """Whether the numbers can be read: not traced, and all on this process."""
    return not isinstance(value, Tracer) and getattr(
        value, "is_fully_addressable", True
    )


def python_number(number):
    """A Python number from a concrete one of numpy or JAX; others as they are."""
    if isinstance(number, Tracer) or not hasattr(number, "item"):
        return number
    return number.item() if number.ndim == 0 else number
