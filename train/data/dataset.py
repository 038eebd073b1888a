"""A data set as plain arrays, a share of it, and labels made wrong on purpose."""

import dataclasses
import hashlib

import numpy as np

NPZ_FIELDS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images [N, H, W, C], uint8 (0..255) or float32 (as they are, in [0, 1]); labels [N], int32, in 0..classes-1.

    ValueError if the arrays do not fit together.
    """

    name: str
    classes: int
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    def __post_init__(self):
        for part in ("train", "test"):
            images, labels = (
                getattr(self, f"{part}_images"),
                getattr(self, f"{part}_labels"),
            )
            where = f"{self.name}, {part}"
            if images.ndim != 4 or images.dtype not in (np.uint8, np.float32):
                raise ValueError(
                    f"{where}: images must be [N, H, W, C] in uint8 or float32, not {images.shape} in {images.dtype}"
                )
            if labels.shape != images.shape[:1] or labels.dtype != np.int32:
                raise ValueError(
                    f"{where}: labels must be [{len(images)}] in int32, not {labels.shape} in {labels.dtype}"
                )
            if not len(images):
                raise ValueError(f"{where}: there are no images")
            if labels.min() < 0 or labels.max() >= self.classes:
                raise ValueError(
                    f"{where}: labels must be in 0..{self.classes - 1}, not {labels.min()}..{labels.max()}"
                )
            if images.dtype == np.float32 and not np.isfinite(images).all():
                raise ValueError(f"{where}: images must be finite")
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ValueError(
                f"{self.name}: train images {self.train_images.shape[1:]} and test images "
                f"{self.test_images.shape[1:]} must have one shape"
            )

    @property
    def image_shape(self):
        return self.train_images.shape[1:]

    def fingerprint(self):
        """A digest of every array: two runs on the same numbers have the same one."""
        digest = hashlib.sha256(
            f"{self.classes} {self.train_images.dtype} {self.train_images.shape}".encode()
        )
        for field in NPZ_FIELDS:
            digest.update(np.ascontiguousarray(getattr(self, field)).data)
        return digest.hexdigest()[:16]


def take_fraction(dataset, part, fraction, seed):
    """The data set with a random share of its "train" or "test" images, at least one: round(fraction * N), in their old order."""
    if fraction == 1:
        return dataset
    images, labels = (
        getattr(dataset, f"{part}_images"),
        getattr(dataset, f"{part}_labels"),
    )
    order = np.random.default_rng((seed, 1 if part == "train" else 3)).permutation(
        len(labels)
    )
    keep = np.sort(order[: max(1, round(fraction * len(labels)))])
    return dataclasses.replace(
        dataset, **{f"{part}_images": images[keep], f"{part}_labels": labels[keep]}
    )


def scramble_labels(dataset, share, seed):
    """The data set with round(share * N) training labels made wrong: true + randint(1, classes) mod classes. Test labels stay."""
    if share == 0:
        return dataset
    if dataset.classes < 2:
        raise ValueError("labels of a single class cannot be made wrong")
    rng, size = np.random.default_rng((seed, 2)), len(dataset.train_labels)
    wrong = rng.permutation(size)[: round(share * size)]
    labels = dataset.train_labels.copy()
    labels[wrong] = (
        labels[wrong] + rng.integers(1, dataset.classes, len(wrong))
    ) % dataset.classes
    return dataclasses.replace(dataset, train_labels=labels)
