"""A data set as plain arrays, and what a run does to it: shares, validation, noise."""

import dataclasses
import hashlib

import numpy as np

PARTS = ("train", "test", "val")
FIELDS = tuple(f"{part}_{kind}" for part in PARTS for kind in ("images", "labels"))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images and labels to train on, to test on and, optionally, to validate with.

    Images are [N, H, W, C], uint8 (0..255) or float32 (taken as they are). Labels are
    [N], int32, in 0..classes-1. Without a validation part its arrays are empty.

    Raises:
        ValueError: the arrays do not fit together.
    """

    name: str
    classes: int
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    val_images: np.ndarray | None = None
    val_labels: np.ndarray | None = None

    def __post_init__(self):
        if self.val_images is None or self.val_labels is None:
            object.__setattr__(self, "val_images", self.train_images[:0])
            object.__setattr__(self, "val_labels", self.train_labels[:0])
        for part in PARTS:
            self._check_part(part, *self.part(part))
        shapes = {self.part(part)[0].shape[1:] for part in PARTS}
        if len(shapes) > 1:
            raise ValueError(
                f"{self.name}: train images {self.train_images.shape[1:]} and test "
                f"images {self.test_images.shape[1:]} must have one shape"
            )

    def _check_part(self, part: str, images: np.ndarray, labels: np.ndarray) -> None:
        where = f"{self.name}, {part}"
        if images.ndim != 4 or images.dtype not in (np.uint8, np.float32):
            raise ValueError(
                f"{where}: images must be [N, H, W, C] in uint8 or float32, not "
                f"{images.shape} in {images.dtype}"
            )
        if min(images.shape[1:]) < 1:
            raise ValueError(f"{where}: images of shape {images.shape[1:]} are empty")
        if labels.shape != images.shape[:1] or labels.dtype != np.int32:
            raise ValueError(
                f"{where}: labels must be [{len(images)}] in int32, not "
                f"{labels.shape} in {labels.dtype}"
            )
        if not len(images):
            if part == "val":
                return
            raise ValueError(f"{where}: there are no images")
        if labels.min() < 0 or labels.max() >= self.classes:
            raise ValueError(
                f"{where}: labels must be in 0..{self.classes - 1}, not "
                f"{labels.min()}..{labels.max()}"
            )
        if images.dtype == np.float32 and not np.isfinite(images).all():
            raise ValueError(f"{where}: images must be finite")

    def part(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(images, labels) of the "train", "test" or "val" part."""
        return getattr(self, f"{name}_images"), getattr(self, f"{name}_labels")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.train_images.shape[1:]

    @property
    def has_validation(self) -> bool:
        return len(self.val_labels) > 0

    def fingerprint(self) -> str:
        """A digest of every array: two runs on the same numbers have the same one."""
        kind = f"{self.classes} {self.train_images.dtype} {self.train_images.shape}"
        digest = hashlib.sha256(kind.encode())
        for field in FIELDS:
            digest.update(np.ascontiguousarray(getattr(self, field)).data)
        return digest.hexdigest()[:16]


def take_fraction(dataset: Dataset, part: str, fraction: float, seed: int) -> Dataset:
    """The data set with a random share of its "train" or "test" images.

    round(fraction * N) images, at least one, stay in their old order.
    """
    if fraction == 1:
        return dataset
    images, labels = dataset.part(part)
    stream = {"train": 1, "test": 3}[part]
    order = np.random.default_rng((seed, stream)).permutation(len(labels))
    keep = np.sort(order[: max(1, round(fraction * len(labels)))])
    changed = {f"{part}_images": images[keep], f"{part}_labels": labels[keep]}
    return dataclasses.replace(dataset, **changed)


def split_validation(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """The data set with a random share of its training images set aside to validate.

    round(fraction * N) images, at least one, in their old order; fraction 0 sets none
    aside.

    Raises:
        ValueError: no training image would be left.
    """
    if fraction == 0:
        return dataset
    images, labels = dataset.part("train")
    count = max(1, round(fraction * len(labels)))
    if count >= len(labels):
        raise ValueError(
            f"a validation share of {fraction} of {len(labels)} training images "
            "leaves none to train on"
        )
    order = np.random.default_rng((seed, 4)).permutation(len(labels))
    aside, keep = np.sort(order[:count]), np.sort(order[count:])
    return dataclasses.replace(
        dataset,
        train_images=images[keep],
        train_labels=labels[keep],
        val_images=images[aside],
        val_labels=labels[aside],
    )


def scramble_labels(dataset: Dataset, share: float, seed: int) -> Dataset:
    """The data set with round(share * N) training labels made wrong.

    A wrong label is (true + randint(1, classes)) mod classes. Other labels stay.
    """
    if share == 0:
        return dataset
    if dataset.classes < 2:
        raise ValueError("labels of a single class cannot be made wrong")
    rng, size = np.random.default_rng((seed, 2)), len(dataset.train_labels)
    wrong = rng.permutation(size)[: round(share * size)]
    shift = rng.integers(1, dataset.classes, len(wrong))
    labels = dataset.train_labels.copy()
    labels[wrong] = (labels[wrong] + shift) % dataset.classes
    return dataclasses.replace(dataset, train_labels=labels)
