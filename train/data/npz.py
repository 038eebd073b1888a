"""Data sets of one's own in an .npz file, checked for the mistakes such files have."""

import warnings
from pathlib import Path

import numpy as np

from train.data.dataset import Dataset

FIELDS = ("train_images", "train_labels", "test_images", "test_labels")
# Floats past this are taken for bytes that nobody divided by 255.
LARGEST_FLOAT = 20.0


def from_npz(path: str | Path) -> Dataset:
    """The data set in an .npz file.

    It holds train_images, train_labels, test_images and test_labels; images [N, H, W]
    count as [N, H, W, 1].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or its arrays are no data set.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    arrays = read_arrays(path, FIELDS)
    labels = {name: _labels(path, name, arrays[name]) for name in FIELDS[1::2]}
    images = {name: _images(path, name, arrays[name]) for name in FIELDS[::2]}
    _check_ranges(path, *images.values())
    for part in ("train", "test"):
        count = images[f"{part}_images"].shape[0]
        if labels[f"{part}_labels"].shape != (count,):
            raise ValueError(
                f"{path}: {part}_labels must be [{count}], one for each image, not "
                f"{list(labels[f'{part}_labels'].shape)}"
            )
    classes = _count_classes(path, *labels.values())
    return Dataset(path.stem, classes, **images, **labels)


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """These arrays of an .npz file.

    Raises:
        ValueError: the file is damaged, or does not hold them.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in names if name not in file]
            arrays = {name: file[name] for name in names if name not in missing}
    except MemoryError:
        raise
    except Exception as error:  # zipfile, zlib, tokenize and numpy each have their own
        raise ValueError(
            f"{path} is damaged, or is no .npz file of plain arrays "
            f"({type(error).__name__}: {error}); write it again with numpy.savez"
        ) from error
    if missing:
        raise ValueError(
            f"{path} must hold the arrays {', '.join(names)}; it lacks "
            f"{', '.join(missing)}"
        )
    return arrays


def _labels(path: Path, name: str, labels: np.ndarray) -> np.ndarray:
    """Labels as int32, their range checked before they are narrowed."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{path}: {name} must be integers, not {labels.dtype}")
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < 2**31 - 1:
        raise ValueError(
            f"{path}: {name} must be in 0..classes-1, not "
            f"{labels.min()}..{labels.max()}"
        )
    return labels.astype(np.int32)


def _images(path: Path, name: str, images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, C] in uint8 or float32."""
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"{path}: {name} must be uint8 or floating point, not {images.dtype}"
        )
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4:
        raise ValueError(
            f"{path}: {name} must be [N, H, W] or [N, H, W, C], not {images.shape}"
        )
    if images.shape[1] in (1, 3, 4) and images.shape[3] > 4:
        raise ValueError(
            f"{path}: {name} of shape {images.shape} have their channels first; "
            "numpy.moveaxis(images, 1, -1) puts them last"
        )
    return images if images.dtype == np.uint8 else images.astype(np.float32)


def _check_ranges(path: Path, train: np.ndarray, test: np.ndarray) -> None:
    """Training and test images must be in one range: bytes, or floats in [0, 1]."""
    if train.dtype != test.dtype:
        raise ValueError(
            f"{path}: train_images are {train.dtype} and test_images {test.dtype}; "
            "both must be uint8 (0..255), or both floats in [0, 1]"
        )
    if not train.size or not test.size:
        return
    if train.dtype == np.uint8:
        if train.max() == 1:
            warnings.warn(
                f"{path}: images are uint8 in 0..1, and will be divided by 255; save "
                "0..255, or floats in [0, 1]",
                stacklevel=3,
            )
        return
    ranges = [(float(part.min()), float(part.max())) for part in (train, test)]
    shown = " and ".join(f"{low:g}..{high:g}" for low, high in ranges)
    sizes = [max(abs(low), abs(high)) for low, high in ranges]
    if not np.isfinite(sizes).all():
        raise ValueError(f"{path}: images must be finite; they are in {shown}")
    if max(sizes) > LARGEST_FLOAT or max(sizes) > 4 * min(sizes) > 0:
        raise ValueError(
            f"{path}: floating-point images must be in [0, 1]; those to train and to "
            f"test are in {shown}. Divide both by the same number, or save uint8"
        )
    warn_outside_unit_range(path, ranges)


def warn_outside_unit_range(path: Path, ranges: list[tuple[float, float]]) -> None:
    """Say that images of these ranges, one for each part, are not in [0, 1]."""
    if any(low < 0 or high > 1 for low, high in ranges):
        shown = " and ".join(f"{low:g}..{high:g}" for low, high in ranges)
        warnings.warn(
            f"{path}: images are in {shown}, not in [0, 1]; they are taken as they are",
            stacklevel=4,
        )


def _count_classes(path: Path, train: np.ndarray, test: np.ndarray) -> int:
    """The number of classes; every one should have a training image."""
    present, tested = np.unique(train), np.unique(test)
    if not len(present):
        return 1  # the data set then says that there are no images
    unknown = np.setdiff1d(tested, present)
    if len(unknown):
        raise ValueError(
            f"{path}: no training image has the label {unknown[0]}, which test images "
            "have"
        )
    classes = 1 + int(present.max())
    absent = classes - len(present)
    if absent > len(present):
        raise ValueError(
            f"{path}: labels must be numbered 0..classes-1; the largest is "
            f"{classes - 1}, and only {len(present)} different ones occur"
        )
    if absent:
        first = int(np.setdiff1d(np.arange(classes), present)[0])
        warnings.warn(
            f"{path}: {absent} of {classes} classes have no training image, "
            f"{first} for one; labels begin at 0",
            stacklevel=3,
        )
    return classes
