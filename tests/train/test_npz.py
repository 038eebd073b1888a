"""Data sets in .npz files: read right, or refused in a line that says what is wrong."""

import warnings

import numpy as np
import pytest

from train import data

FLOATS = np.linspace(0, 1, 6 * 64).reshape(6, 8, 8)


def save(path, **changed):
    arrays = {
        "train_images": np.zeros((6, 8, 8), np.uint8),
        "train_labels": np.arange(6) % 3,
        "test_images": np.zeros((3, 8, 8), np.uint8),
        "test_labels": np.arange(3),
    } | changed
    np.savez(path, **{name: v for name, v in arrays.items() if v is not None})
    return str(path)


def test_read(tmp_path, monkeypatch):
    path = save(tmp_path / "mine.npz")
    found = data.load(path)
    assert found.name == "mine" and found.classes == 3
    assert found.image_shape == (8, 8, 1) and found.train_labels.dtype == np.int32
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.load("~/mine.npz").fingerprint() == found.fingerprint()


def test_floats_in_the_unit_range_are_taken_as_they_are(tmp_path):
    path = save(tmp_path / "a.npz", train_images=FLOATS, test_images=FLOATS[:3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = data.load(path)
    assert found.train_images.dtype == np.float32
    np.testing.assert_allclose(found.train_images[..., 0], FLOATS, rtol=1e-6)


def full(value, dtype=float, train=6):
    return np.full((train, 8, 8), value, dtype)


REFUSED = [
    ({"test_labels": None}, "lacks test_labels"),
    ({"train_labels": np.zeros(6)}, "integers"),
    ({"train_labels": np.zeros(5, int)}, r"\[6\]"),
    ({"train_labels": np.full(6, -1)}, r"0..classes-1, not -1..-1"),
    ({"train_labels": np.arange(6) + 2**32}, "not 4294967296..4294967301"),
    ({"train_labels": np.full(6, 2**63, np.uint64)}, "0..classes-1"),
    ({"train_labels": np.array([0, 1, 2, 0, 1, 999_999])}, "largest is 999999"),
    ({"train_labels": np.zeros(6, int)}, "no training image has the label 1"),
    ({"test_labels": np.array([0, 1, 7])}, "no training image has the label 7"),
    ({"train_images": full(0, int)}, "uint8 or floating"),
    ({"train_images": full("a", str)}, "uint8 or floating"),
    ({"train_images": np.zeros((6, 9, 8), np.uint8)}, "one shape"),
    ({"train_images": np.zeros((6, 64), np.uint8)}, "N, H, W, C"),
    ({"train_images": np.uint8(3)}, "N, H, W"),
    ({"train_labels": np.int64(3)}, r"must be \[6\]"),
    ({"train_labels": np.eye(6, dtype=int)}, r"must be \[6\]"),
    ({"train_labels": np.arange(6) > 2}, "integers"),
    ({"train_images": full(0, complex)}, "uint8 or floating"),
    (
        {
            "train_images": np.zeros((6, 0, 8), np.uint8),
            "test_images": np.zeros((3, 0, 8), np.uint8),
        },
        "are empty",
    ),
    ({"train_images": full(np.nan), "test_images": FLOATS[:3]}, "finite"),
    ({"test_images": full(0.5, train=3)}, "are uint8 and test_images float32"),
    ({"test_images": 255 * FLOATS[:3]}, "are uint8 and test_images float32"),
    ({"train_images": 255 * FLOATS, "test_images": 255 * FLOATS[:3]}, "0..255 and"),
    ({"train_images": FLOATS, "test_images": 255 * FLOATS[:3]}, "0..1 and 0..127"),
    ({"train_images": FLOATS, "test_images": 16 * FLOATS[:3]}, r"in \[0, 1\]"),
    (
        {
            "train_images": np.zeros((6, 3, 8, 8), np.uint8),
            "test_images": np.zeros((3, 3, 8, 8), np.uint8),
        },
        r"moveaxis\(images, 1, -1\)",
    ),
    (
        {
            "test_images": np.zeros((0, 8, 8), np.uint8),
            "test_labels": np.zeros(0, int),
        },
        "no images",
    ),
    (
        {
            "train_images": np.zeros((0, 8, 8), np.uint8),
            "train_labels": np.zeros(0, int),
        },
        "no images",
    ),
]


@pytest.mark.parametrize("changed, words", REFUSED)
def test_refused(tmp_path, changed, words):
    with pytest.raises(ValueError, match=words) as error:
        data.load(save(tmp_path / "mine.npz", **changed))
    assert "mine" in str(error.value)


def test_labels_that_begin_at_one_and_standardised_floats_are_warned_of(tmp_path):
    one = save(
        tmp_path / "a.npz",
        train_labels=1 + np.arange(6) % 3,
        test_labels=1 + np.arange(3),
    )
    with pytest.warns(UserWarning, match="1 of 4 classes have no training image, 0"):
        assert data.load(one).classes == 4
    bits = {
        "train_images": (FLOATS > 0.5).astype(np.uint8),
        "test_images": (FLOATS[:3] > 0.5).astype(np.uint8),
    }
    with pytest.warns(UserWarning, match="uint8 in 0..1"):
        data.load(save(tmp_path / "c.npz", **bits))
    images = 4 * FLOATS - 2
    other = save(tmp_path / "b.npz", train_images=images, test_images=images[1:4])
    with pytest.warns(UserWarning, match=r"not in \[0, 1\]"):
        data.load(other)


def _flip(content):
    damaged = bytearray(content)
    for place in range(100, len(content), 200):
        damaged[place] ^= 255
    return bytes(damaged)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:30],
        lambda content: b"no zip file",
        lambda content: b"\x93NUMPY" + content[6:],
        lambda content: content + b"behind",
        _flip,
    ],
)
def test_damaged_files(tmp_path, damage):
    path = tmp_path / "mine.npz"
    save(path)
    path.write_bytes(damage(path.read_bytes()))
    try:
        data.load(str(path))
    except ValueError as error:
        assert str(path) in str(error) and "numpy.savez" in str(error)


def test_other_files(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    np.savez(tmp_path / "objects.npz", train_images=np.array([{}], object))
    for name in ("array.npz", "objects.npz"):
        with pytest.raises(ValueError, match=name):
            data.load(str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="no file"):
        data.load(str(tmp_path / "no.npz"))
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(FileNotFoundError, match="no file"):
        data.load(str(tmp_path / "folder.npz"))
