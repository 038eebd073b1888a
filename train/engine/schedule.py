"""The learning rate of every epoch; it is constant within one."""

from collections.abc import Callable

import numpy as np


def triangular(epochs: int, low: float = 0.001, high: float = 0.01) -> np.ndarray:
    """Rates [epochs], float32: linear from low up to high, then the same way down.

    This is the authors' schedule. When epochs is even the peak stands twice in the
    middle; one or two epochs have no room for a slope and run at high.

    Raises:
        ValueError: epochs is less than 1.
    """
    _check(epochs)
    from_nearer_end = np.minimum(np.arange(epochs), np.arange(epochs)[::-1])
    if epochs > 2:
        slope = from_nearer_end / from_nearer_end.max()
    else:
        slope = np.ones(epochs)
    return (low + (high - low) * slope).astype(np.float32)


def constant(epochs: int, low: float = 0.001, high: float = 0.01) -> np.ndarray:
    """Rates [epochs], float32: high throughout; low is not used."""
    _check(epochs)
    return np.full(epochs, high, np.float32)


def cosine(epochs: int, low: float = 0.001, high: float = 0.01) -> np.ndarray:
    """Rates [epochs], float32: from high down to low along half a cosine."""
    _check(epochs)
    turn = np.linspace(0, np.pi, epochs)
    return (low + (high - low) * (1 + np.cos(turn)) / 2).astype(np.float32)


def steps(epochs: int, low: float = 0.001, high: float = 0.01) -> np.ndarray:
    """Rates [epochs], float32: high, divided by 10 every 10 epochs; low is not used.

    The schedule of NEMON's authors.
    """
    _check(epochs)
    return (high * 0.1 ** (np.arange(epochs) // 10)).astype(np.float32)


SCHEDULES: dict[str, Callable[..., np.ndarray]] = {
    "triangular": triangular,
    "constant": constant,
    "cosine": cosine,
    "steps": steps,
}


def _check(epochs: int) -> None:
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, not {epochs}")
