"""Classes and probabilities of images, by the networks of a finished run."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from train.data.npz import LARGEST_FLOAT, read_arrays, warn_outside_unit_range
from train.runs.ensemble import Ensemble
from train.runs.files import write_text
from train.runs.summary import aligned

BATCH = 500


def read_images(
    paths: Iterable[str | Path], image_shape: tuple[int, int, int]
) -> tuple[list[str], np.ndarray]:
    """(names, images [N, H, W, C]) of pictures, or of `images` arrays in .npz files.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is damaged, or its images are of another size.
    """
    names, parts = [], []
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        if path.suffix == ".npz":
            images = read_arrays(path, ("images",))["images"]
            images = images[..., None] if images.ndim == 3 else images
            names += [f"{path.name}[{i}]" for i in range(len(images))]
        else:
            images = _picture(path, image_shape[2])[None]
            names.append(path.name)
        if images.ndim != 4 or images.shape[1:] != tuple(image_shape):
            raise ValueError(
                f"{path} holds images of {'x'.join(map(str, images.shape[1:]))}, and "
                f"the networks take {'x'.join(map(str, image_shape))}"
            )
        parts.append(_in_unit_range(path, images))
    if not names:
        raise ValueError("there are no images")
    return names, np.concatenate(parts)


def _picture(path: Path, channels: int) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.mode[0] in "IF":  # which convert("L") would clip at 255
                raise ValueError(
                    f"{path} has more than 8 bits for each value ({picture.mode}): "
                    "save it with 8"
                )
            pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    except OSError as error:
        raise ValueError(f"{path} is no picture that can be read: {error}") from error
    return pixels.reshape(*pixels.shape[:2], -1)


def _in_unit_range(path: Path, images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images / np.float32(255)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"{path}: images must be uint8 or floating point, not {images.dtype}"
        )
    if not np.isfinite(images).all() or np.abs(images).max(initial=0) > LARGEST_FLOAT:
        raise ValueError(
            f"{path}: floating-point images must be in [0, 1]; they are in "
            f"{images.min():g}..{images.max():g}"
        )
    span = float(images.min(initial=0)), float(images.max(initial=0))
    warn_outside_unit_range(path, [span])
    return images.astype(np.float32)


def predict(ensemble: Ensemble, images: np.ndarray) -> np.ndarray:
    """Probabilities of the classes, of every seed: [S, N, classes]."""
    parts = []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        # Filled up, so that one shape is compiled.
        padded = np.resize(batch, (min(BATCH, len(images)), *images.shape[1:]))
        parts.append(np.asarray(ensemble.probabilities(padded))[:, : len(batch)])
    return np.concatenate(parts, axis=1)


def rows(names: list[str], probabilities: np.ndarray, first_seed: int) -> list:
    """A header, and a row for each image: the ensemble's class, then every seed's.

    The ensemble's probabilities are the means over the seeds.
    """
    seeds = range(first_seed, first_seed + len(probabilities))
    header = ["image", "class", "probability"]
    for seed in seeds:
        header += [f"seed {seed}", f"probability of seed {seed}"]
    table = [header]
    voters = [probabilities.mean(0), *probabilities]
    for i, name in enumerate(names):
        cells = [name]
        for voter in voters:
            best = int(voter[i].argmax())
            cells += [str(best), f"{voter[i, best]:.4f}"]
        table.append(cells)
    return table


def as_text(table: list, most: int = 50) -> str:
    """The table, columns aligned; of many images the first ones."""
    text = aligned(table[: most + 1])
    left = len(table) - 1 - most
    return text + (f"\n... and {left} more; --out writes all" if left > 0 else "")


def write_csv(path: str | Path, table: list) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    write_text(path, text.getvalue())
