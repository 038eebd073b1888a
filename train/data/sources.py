"""Where data sets come from: TFDS (without TensorFlow), scikit-learn's digits, .npz files."""

import os
from pathlib import Path

import numpy as np

from train.data.dataset import NPZ_FIELDS, Dataset

TFDS = ("fashion_mnist", "cifar10", "svhn_cropped")


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
