"""The learning rate of every epoch."""

import numpy as np


def triangular(epochs, low=0.001, high=0.01):
    """Rates [epochs], float32: linear from low up to high over the first half, then the same way down.

    Constant within an epoch, as in the authors' code. When epochs is even the peak stands twice in the middle; one or
    two epochs have no room for a slope and run at high. ValueError for fewer than one epoch.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, not {epochs}")
    distance = np.minimum(
        np.arange(epochs), np.arange(epochs)[::-1]
    )  # from the nearer end
    slope = distance / distance.max() if epochs > 2 else np.ones(epochs)
    return (low + (high - low) * slope).astype(np.float32)
