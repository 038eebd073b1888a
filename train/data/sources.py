"""A data set by its name, and the data set that a config asks for."""

from typing import TYPE_CHECKING

import numpy as np

from train.data import tfds
from train.data.dataset import (
    Dataset,
    scramble_labels,
    split_validation,
    take_fraction,
)
from train.data.npz import from_npz
from train.options import did_you_mean

if TYPE_CHECKING:
    from train.config import Config


def load(name: str, data_dir: str | None = None) -> Dataset:
    """A data set by its name, or from the path of an .npz file.

    Args:
        name: digits, mnist, fashion_mnist, cifar10, svhn_cropped, or a path.
        data_dir: where TFDS data sets lie.

    Raises:
        ValueError: there is no such data set, or its files are damaged.
        FileNotFoundError: its files are not there; says how to get them.
    """
    if name == "digits":
        return digits()
    if name in tfds.NAMES:
        return tfds.from_tfds(name, data_dir)
    if name.endswith(".npz"):
        return from_npz(name)
    known = ("digits", *tfds.NAMES)
    raise ValueError(
        f"dataset must be one of {', '.join(known)} or the path of an .npz file, not "
        f"{name!r}{did_you_mean(name, known)}"
    )


def prepare(config: "Config") -> Dataset:
    """The data set of a config, with its shares, validation part and label noise.

    All of these follow config.seed.
    """
    dataset = load(config.dataset, config.data_dir)
    dataset = take_fraction(dataset, "train", config.train_fraction, config.seed)
    dataset = take_fraction(dataset, "test", config.test_fraction, config.seed)
    dataset = split_validation(dataset, config.validation_share, config.seed)
    return scramble_labels(dataset, config.label_noise, config.seed)


def digits() -> Dataset:
    """Scikit-learn's 1,797 handwritten digits, 8x8x1 in [0, 1].

    A fixed fifth of every class is the test set.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "data set digits needs scikit-learn: pip install -e '.[train]'"
        ) from error
    bunch = load_digits()
    images = (bunch.images[..., None] / 16).astype(np.float32)
    labels = bunch.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(labels))
    per_class = [order[labels[order] == c] for c in range(10)]
    test = np.sort(np.concatenate([same[: len(same) // 5] for same in per_class]))
    train = np.setdiff1d(order, test)
    parts = (images[train], labels[train], images[test], labels[test])
    return Dataset("digits", 10, *parts)
