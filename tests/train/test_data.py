"""Data sets: shapes, TFDS read from real array_record files, refusals, the arrows,
scrambled labels.
"""

import dataclasses
import io
import shutil
import subprocess
import sys

import numpy as np
import pytest

from train import data
from train.config import Config


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """A prepared TFDS fashion_mnist of 30 + 10 images, written by TFDS itself as
    array_record.
    """
    import tensorflow_datasets as tfds
    from PIL import Image

    features = {
        "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
        "label": tfds.features.ClassLabel(num_classes=10),
    }

    def png(image):
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0]).save(buffer, "PNG")
        return buffer.getvalue()

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.1")
        name = "fashion_mnist"

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(30, 0),
                "test": self._generate_examples(10, 1),
            }

        def _generate_examples(self, count, seed):
            for i, image in enumerate(tiny_images(count, seed)):
                yield i, {"image": png(image), "label": i % 10}

    folder = tmp_path_factory.mktemp("tfds")
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    Tiny(data_dir=str(folder), file_format="array_record").download_and_prepare(
        download_config=config
    )
    return str(folder)


def tiny_images(count, seed):
    return np.random.default_rng(seed).integers(
        0, 256, (count, 28, 28, 1), dtype=np.uint8
    )


def test_tfds(tfds_folder, monkeypatch):
    found = data.load("fashion_mnist", tfds_folder)
    assert (
        found.classes == 10
        and found.image_shape == (28, 28, 1)
        and found.train_images.dtype == np.uint8
    )
    # TFDS shuffles while it writes: the same images, each with its label, in another
    # order.
    written = {image.tobytes(): i % 10 for i, image in enumerate(tiny_images(30, 0))}
    assert {
        image.tobytes(): label
        for image, label in zip(found.train_images, found.train_labels)
    } == written
    assert len(found.test_labels) == 10
    monkeypatch.setenv("TFDS_DATA_DIR", tfds_folder)
    assert data.load("fashion_mnist").fingerprint() == found.fingerprint()


def test_tfds_does_not_import_tensorflow(tfds_folder):
    code = (
        "import sys; from train import data; "
        f"data.load('fashion_mnist', {tfds_folder!r}); "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", data.TFDS)
def test_missing_data_says_how_to_get_it(name, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        data.load(name, str(tmp_path))
    assert (
        f"tfds.builder('{name}', data_dir='{tmp_path}', "
        "file_format='array_record').download_and_prepare()" in str(error.value)
    )


def test_the_command_is_python(tmp_path):
    """The part in quotes runs up to the download: nothing in it is misspelt."""
    with pytest.raises(FileNotFoundError) as error:
        data.load("cifar10", str(tmp_path))
    command = next(
        line for line in str(error.value).splitlines() if "download_and_prepare" in line
    ).split('"')[1]
    builder = {}
    exec(
        command.replace("tfds.builder", "builder = tfds.builder").replace(
            ".download_and_prepare()", ""
        ),
        builder,
    )
    assert builder["builder"].info.file_format.value == "array_record" and callable(
        builder["builder"].download_and_prepare
    )


def test_digits():
    digits = data.digits()
    assert len(digits.train_labels) + len(
        digits.test_labels
    ) == 1797 and digits.image_shape == (8, 8, 1)
    assert (
        digits.train_images.dtype == np.float32
        and digits.train_images.min() == 0
        and digits.train_images.max() == 1
    )
    assert digits.fingerprint() == data.digits().fingerprint()
    share = np.bincount(digits.test_labels) / (
        np.bincount(digits.train_labels) + np.bincount(digits.test_labels)
    )
    assert np.all(np.abs(share - 0.2) < 0.01)
    assert digits.fingerprint() != data.scramble_labels(digits, 0.01, 0).fingerprint()


def test_unknown(tmp_path):
    with pytest.raises(ValueError, match="did you mean fashion_mnist"):
        data.load("fashionmnist")


@pytest.mark.parametrize("fraction, count", [(0.1, 144), (1e-9, 1), (0.5, 721)])
def test_validation_images_are_taken_from_the_training_images(fraction, count):
    digits = data.digits()
    split = data.split_validation(digits, fraction, seed=3)
    assert len(split.val_labels) == count and split.has_validation
    both = np.concatenate([split.train_images, split.val_images])
    images = {image.tobytes() for image in digits.train_images}
    assert {image.tobytes() for image in both} == images
    assert len(both) == len(digits.train_labels)
    assert split.test_images is digits.test_images
    again = data.split_validation(digits, fraction, seed=3)
    assert split.fingerprint() == again.fingerprint() != digits.fingerprint()


def test_no_validation():
    digits = data.digits()
    assert data.split_validation(digits, 0.0, 0) is digits
    assert not digits.has_validation and len(digits.val_images) == 0
    few = data.take_fraction(digits, "train", 1e-9, 0)
    with pytest.raises(ValueError, match="leaves none to train on"):
        data.split_validation(few, 0.5, 0)


def test_a_config_prepares_its_data():
    config = Config(train_fraction=0.5, label_noise=0.5, val_fraction=0.2)
    found = data.prepare(config)
    assert len(found.val_labels) == 144 and len(found.train_labels) == 577
    assert not data.prepare(Config(as_paper=True)).has_validation
    digits = data.digits()
    true = {i.tobytes(): n for i, n in zip(*digits.part("train"))}
    # Labels to validate with are right, whatever the noise in those to train on.
    assert all(true[i.tobytes()] == n for i, n in zip(*found.part("val")))


def _truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _edit(old, new):
    def change(file):
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return change


SHARD = "*-train.array_record*"
TFDS_DAMAGES = [
    (SHARD, lambda file: file.unlink(), "is missing"),
    (SHARD, lambda file: file.write_bytes(b""), "is empty"),
    (SHARD, _truncate, "damaged"),
    (SHARD, lambda file: file.write_bytes(b"x" * 70000), "damaged"),
    ("dataset_info.json", _truncate, "damaged"),
    ("dataset_info.json", _edit('"30"', '"20"'), "holds 30 records, and .* says 20"),
    ("dataset_info.json", _edit('"test"', '"validation"'), "no split test"),
]


@pytest.mark.parametrize("name, damage, words", TFDS_DAMAGES)
def test_damaged_tfds_files_are_named(tfds_folder, tmp_path, name, damage, words):
    folder = tmp_path / "tfds"
    shutil.copytree(tfds_folder, folder)
    (file,) = (folder / "fashion_mnist" / "3.0.1").glob(name)
    damage(file)
    with pytest.raises(ValueError, match=words) as error:
        data.load("fashion_mnist", str(folder))
    assert str(folder / "fashion_mnist") in str(error.value)
    assert "prepare it again" in str(error.value)


def test_arrows():
    arrows = data.arrows(train=400, test=200, seed=3)
    points = arrows.train_images.reshape(-1, 2).astype(float)
    assert (
        arrows.train_images.shape == (400, 1, 2, 1)
        and arrows.train_images.dtype == np.float32
    )
    assert np.bincount(arrows.train_labels).tolist() == [200, 200] and np.bincount(
        arrows.test_labels
    ).tolist() == [100, 100]
    inner, outer = (
        data.inside(data.ARROW, points),
        data.inside(data.TRAPEZOID, points) & ~data.inside(data.HOLE, points),
    )
    np.testing.assert_array_equal(inner, arrows.train_labels == 0)
    np.testing.assert_array_equal(outer, arrows.train_labels == 1)
    with pytest.raises(ValueError, match="even"):
        data.arrows(train=3)


def test_inside_has_the_right_area():
    """Uniform points fall inside as often as the shoelace formula says; a point above a
    vertex counts once.
    """
    points = np.random.default_rng(0).uniform(-1, 1, (200_000, 2))
    for polygon in (data.TRAPEZOID, data.HOLE, data.ARROW):
        (x, y), (u, v) = polygon.T, np.roll(polygon, -1, 0).T
        area = abs(np.sum(x * v - u * y)) / 2
        assert abs(4 * data.inside(polygon, points).mean() - area) < 0.02
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)
    assert data.inside(
        square, np.array([(0.5, 0.5), (-1, 0), (-1, 1), (2, 0.5), (-1, 0.5)])
    ).tolist() == [True] + 4 * [False]


def test_scrambled_labels_are_always_wrong():
    digits = data.digits()
    noisy = data.scramble_labels(digits, 0.25, seed=1)
    changed = noisy.train_labels != digits.train_labels
    assert changed.sum() == round(0.25 * len(changed)) and set(
        noisy.train_labels[changed]
    ) == set(range(10))
    np.testing.assert_array_equal(noisy.test_labels, digits.test_labels)
    assert (
        data.scramble_labels(digits, 1.0, 0).train_labels != digits.train_labels
    ).all()
    np.testing.assert_array_equal(
        noisy.train_labels, data.scramble_labels(digits, 0.25, seed=1).train_labels
    )
    with pytest.raises(ValueError, match="single class"):
        data.scramble_labels(
            dataclasses.replace(
                digits,
                classes=1,
                train_labels=0 * digits.train_labels,
                test_labels=0 * digits.test_labels,
            ),
            0.5,
            0,
        )


@pytest.mark.parametrize("part, other", [("train", "test"), ("test", "train")])
def test_fraction(part, other):
    digits = data.digits()
    few = data.take_fraction(digits, part, 0.1, seed=0)

    def images(dataset, part):
        return dataset.part(part)[0]

    def labels(dataset, part):
        return dataset.part(part)[1]

    assert len(labels(few, part)) == round(0.1 * len(labels(digits, part))) and images(
        few, other
    ) is images(digits, other)
    whole = {
        image.tobytes(): label
        for image, label in zip(images(digits, part), labels(digits, part))
    }
    assert all(
        whole[image.tobytes()] == label
        for image, label in zip(images(few, part), labels(few, part))
    )
    assert len(labels(data.take_fraction(digits, part, 1e-9, 0), part)) == 1
    assert data.take_fraction(digits, part, 1.0, 0) is digits
