"""Images made on the spot, so that no example needs a download."""

import numpy as np


def shapes(count: int, size: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(images [count, size, size, 1], labels): noisy blobs, rings and crosses."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    rows, columns = np.mgrid[:size, :size]
    centre = rng.uniform(0.35 * size, 0.65 * size, (count, 2, 1, 1))
    dy, dx = rows - centre[:, 0], columns - centre[:, 1]
    distance = np.hypot(dy, dx)
    blob = np.exp(-(distance**2) / (0.05 * size**2))
    ring = np.exp(-((distance - 0.25 * size) ** 2))
    cross = np.exp(-(np.minimum(abs(dy), abs(dx)) ** 2)) * (distance < 0.35 * size)
    shape = np.choose(labels[:, None, None], [blob, ring, cross])
    images = 0.7 * shape + rng.normal(0.15, 0.1, shape.shape)
    return np.clip(images, 0, 1).astype(np.float32)[..., None], labels
