"""Prepared TFDS data sets in array_record files, read without TensorFlow."""

import os
from pathlib import Path

import numpy as np

from train.data.dataset import Dataset

NAMES = ("mnist", "fashion_mnist", "cifar10", "svhn_cropped")
# Records decoded at once: one at a time is slow, all at once doubles the memory.
CHUNK = 1000


def from_tfds(name: str, data_dir: str | None = None) -> Dataset:
    """A data set that TFDS has prepared.

    Args:
        data_dir: where; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
        ImportError: tensorflow-datasets is not installed.
        FileNotFoundError: the data set is not prepared there; says how to.
        ValueError: its files are damaged.
    """
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folder = os.path.expanduser(data_dir or default)
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"data set {name} needs tensorflow-datasets: pip install -e '.[train]'"
        ) from error
    if not list(Path(folder, name).glob("*/dataset_info.json")):
        raise FileNotFoundError(_how_to_prepare(name, folder))
    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        _check_files(builder)
        parts = [
            _arrays(builder.as_data_source(split=split)) for split in ("train", "test")
        ]
        classes = builder.info.features["label"].num_classes
    except (NotImplementedError, tfds.core.DatasetNotFoundError) as error:
        # Prepared, but in another file format or another version.
        raise FileNotFoundError(_how_to_prepare(name, folder)) from error
    except MemoryError:
        raise
    except Exception as error:  # what TFDS raises depends on which file is damaged
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"the files of {name} in {Path(folder, name)} are damaged "
            f"({reason[0][:200]}); delete that folder and prepare it again.\n"
            + _how_to_prepare(name, folder)
        ) from error
    (train, train_labels), (test, test_labels) = parts
    return Dataset(name, classes, train, train_labels, test, test_labels)


def _check_files(builder) -> None:
    """Every file of both splits is there, and holds as many records as it should."""
    from array_record.python.array_record_module import ArrayRecordReader

    for split in ("train", "test"):
        if split not in builder.info.splits:
            raise ValueError(f"dataset_info.json has no split {split}")
        info = builder.info.splits[split]
        for file, wanted in zip(info.filepaths, info.shard_lengths, strict=True):
            if not os.path.isfile(file):
                raise ValueError(f"{os.path.basename(file)} is missing")
            if not os.path.getsize(file):
                raise ValueError(f"{os.path.basename(file)} is empty")
            reader = ArrayRecordReader(str(file))
            found = reader.num_records()
            reader.close()
            if found != wanted:
                raise ValueError(
                    f"{os.path.basename(file)} holds {found} records, and "
                    f"dataset_info.json says {wanted}"
                )


def _arrays(source) -> tuple[np.ndarray, np.ndarray]:
    """Records {image, label} -> arrays, in order."""
    images = labels = np.empty(0)
    for start in range(0, len(source), CHUNK):
        rows = list(range(start, min(start + CHUNK, len(source))))
        records = source.__getitems__(rows)
        if start == 0:
            shape = (len(source), *records[0]["image"].shape)
            images, labels = np.empty(shape, np.uint8), np.empty(shape[0], np.int32)
        for row, record in zip(rows, records, strict=True):
            images[row], labels[row] = record["image"], record["label"]
    return images, labels


def _how_to_prepare(name: str, folder: str) -> str:
    extra = " scipy" if name == "svhn_cropped" else ""
    return (
        f"{name} is not prepared in {folder}. This command downloads and prepares it "
        f"(once; the preparing itself needs `pip install tensorflow{extra}`, the "
        "training does not):\n\n"
        '    python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{folder}', "
        "file_format='array_record').download_and_prepare()\"\n\n"
        "If it is prepared somewhere else, give that folder by --data-dir or "
        "TFDS_DATA_DIR."
    )
