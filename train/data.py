"""Data sets as plain arrays: TFDS (without TensorFlow), scikit-learn's digits, .npz files, the arrows of Fig. 2."""

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np

TFDS = ("fashion_mnist", "cifar10", "svhn_cropped")
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


def load(name, data_dir=None):
    """Data set by name (digits, fashion_mnist, cifar10, svhn_cropped) or from the path of an .npz file.

    ValueError for an unknown name, FileNotFoundError with the remedy when the files are not there.
    """
    if name == "digits":
        return digits()
    if name in TFDS:
        return from_tfds(name, data_dir)
    if name.endswith(".npz"):
        return from_npz(name)
    raise ValueError(
        f"dataset must be one of digits, {', '.join(TFDS)} or the path of an .npz file, not {name!r}"
    )


def digits():
    """Scikit-learn's 1,797 handwritten digits, 8x8x1 in [0, 1]; a fixed fifth of every class is the test set."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = (
        (bunch.images[..., None] / 16).astype(np.float32),
        bunch.target.astype(np.int32),
    )
    order = np.random.default_rng(0).permutation(len(labels))
    test = np.concatenate(
        [
            same[: len(same) // 5]
            for same in (order[labels[order] == c] for c in range(10))
        ]
    )
    train = np.setdiff1d(order, test)
    return Dataset(
        "digits",
        10,
        images[train],
        labels[train],
        images[np.sort(test)],
        labels[np.sort(test)],
    )


def from_npz(path):
    """Arrays train_images, train_labels, test_images, test_labels of an .npz file; images [N, H, W] count as [N, H, W, 1]."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with np.load(path) as file:
        missing = [field for field in NPZ_FIELDS if field not in file]
        if missing:
            raise ValueError(
                f"{path} must hold the arrays {', '.join(NPZ_FIELDS)}; it lacks {', '.join(missing)}"
            )
        arrays = {field: file[field] for field in NPZ_FIELDS}
    for field, array in arrays.items():
        if field.endswith("labels"):
            if not np.issubdtype(array.dtype, np.integer):
                raise ValueError(f"{path}: {field} must be integers, not {array.dtype}")
            arrays[field] = array.astype(np.int32)
        else:
            if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
                raise ValueError(
                    f"{path}: {field} must be uint8 or floating point, not {array.dtype}"
                )
            array = array if array.dtype == np.uint8 else array.astype(np.float32)
            arrays[field] = array[..., None] if array.ndim == 3 else array
    classes = 1 + max(
        int(arrays[f].max(initial=0)) for f in NPZ_FIELDS if f.endswith("labels")
    )
    return Dataset(Path(path).stem, classes, **arrays)


def from_tfds(name, data_dir=None):
    """A prepared TFDS data set, read by tfds.data_source without TensorFlow (data_dir, else $TFDS_DATA_DIR, else TFDS's own)."""
    data_dir = os.path.expanduser(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    )
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"data set {name} needs tensorflow-datasets: pip install 'ibnn_jax[train]'"
        ) from error
    try:
        sources = [
            tfds.data_source(name, split=split, data_dir=data_dir, download=False)
            for split in ("train", "test")
        ]
        classes = (
            tfds.builder(name, data_dir=data_dir, file_format="array_record")
            .info.features["label"]
            .num_classes
        )
    # What TFDS raises when nothing is prepared depends on what it finds instead; the remedy is the same.
    except (
        KeyError,
        NotImplementedError,
        FileNotFoundError,
        AssertionError,
        tfds.core.DatasetNotFoundError,
    ) as error:
        raise FileNotFoundError(_remedy(name, data_dir)) from error
    (train, train_labels), (test, test_labels) = map(_arrays, sources)
    return Dataset(name, classes, train, train_labels, test, test_labels)


def _arrays(source):
    """Records {image, label} -> arrays, in order."""
    images = labels = None
    for start in range(
        0, len(source), 1000
    ):  # in pieces: a record at a time is slow, all at once doubles the memory
        rows = list(range(start, min(start + 1000, len(source))))
        for row, record in zip(rows, source.__getitems__(rows)):
            if images is None:
                images, labels = (
                    np.empty((len(source), *record["image"].shape), np.uint8),
                    np.empty(len(source), np.int32),
                )
            images[row], labels[row] = record["image"], record["label"]
    return images, labels


def _remedy(name, data_dir):
    return (
        f"{name} is not prepared in {data_dir}. This command downloads and prepares it (once; the preparing itself "
        f"needs `pip install tensorflow{' scipy' if name == 'svhn_cropped' else ''}`, the training does not):\n\n"
        f"    python -c \"import tensorflow_datasets as tfds; tfds.builder('{name}', data_dir='{data_dir}', "
        f"file_format='array_record').download_and_prepare()\"\n\n"
        "If it is prepared somewhere else, give that folder by --data-dir or TFDS_DATA_DIR."
    )


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


# Fig. 2, in [-1, 1] x [-1, 1] with y pointing down: class 1 is a trapezoid with an arrow-shaped hole, class 0 the arrow in it.
TRAPEZOID = np.array(
    [(-0.868, -0.851), (-0.868, 0.872), (0.975, 0.183), (0.975, -0.149)]
)
HOLE = np.array([(-0.790, -0.597), (0.802, 0.028), (-0.790, 0.653), (-0.295, 0.027)])
ARROW = np.array([(0.671, 0.028), (-0.620, -0.466), (-0.164, 0.027), (-0.620, 0.523)])


def inside(polygon, points):
    """Which points [N, 2] lie inside the polygon [K, 2] (even-odd rule)? bool [N]."""
    x, y = points[:, None, 0], points[:, None, 1]
    (x0, y0), (x1, y1) = polygon.T, np.roll(polygon, -1, axis=0).T
    straddles = (y0 > y) != (y1 > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
    return (straddles & (x < crossing)).sum(axis=1) % 2 == 1


def arrows(train=2000, test=2000, seed=0):
    """The two concentric arrows of Fig. 2: uniform points of both shapes, the classes balanced, in random order.

    Images [N, 1, 2, 1], float32: the two coordinates as a picture of two pixels, in [-1, 1]. train and test are even.
    """
    for name, count in (("train", train), ("test", test)):
        if count < 2 or count % 2:
            raise ValueError(
                f"{name} must be an even number of points, at least 2, not {count}"
            )
    rng, half = np.random.default_rng(seed), (train + test) // 2

    def sample(accept):
        found = np.empty((0, 2))
        while len(found) < half:
            points = rng.uniform(-1, 1, (4096, 2))
            found = np.concatenate([found, points[accept(points)]])
        return found[:half]

    shapes = (
        sample(lambda q: inside(ARROW, q)),
        sample(lambda q: inside(TRAPEZOID, q) & ~inside(HOLE, q)),
    )
    parts = []
    for start, count in ((0, train // 2), (train // 2, test // 2)):
        points = np.concatenate([shape[start : start + count] for shape in shapes])
        labels = np.repeat(np.arange(2, dtype=np.int32), count)
        order = rng.permutation(2 * count)
        parts += [points[order].astype(np.float32).reshape(-1, 1, 2, 1), labels[order]]
    return Dataset("arrows", 2, *parts)
