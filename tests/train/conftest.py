"""What the tests of train share: tiny data, made-up runs, a commands' environment."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from train.config import Config
from train.data import Dataset

ROOT = Path(__file__).parents[2]


def make_pictures(train=40, test=20, classes=3, size=8, seed=0):
    """Arrays of an .npz data set of pictures that are easy to tell apart."""
    rng = np.random.default_rng(seed)
    shades = rng.integers(0, 200, (classes, size, size))
    labels = np.arange(train + test) % classes
    images = shades[labels] + rng.integers(0, 56, (train + test, size, size))
    images = images.astype(np.uint8)
    return {
        "train_images": images[:train],
        "train_labels": labels[:train],
        "test_images": images[train:],
        "test_labels": labels[train:],
    }


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """The path of an .npz data set of 40 + 20 pictures in three classes."""
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    np.savez(path, **make_pictures())
    return path


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory):
    """Compiled code of these tests goes to a folder of theirs."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Of commands that tests start; compiled code is kept between them."""
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "0",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture
def tiny_config(pictures, tmp_path):
    """Options -> the Config of a standard run on the pictures that takes a second."""

    def make(**changes):
        options = {
            "dataset": str(pictures),
            "model": "sm",
            "seeds": 2,
            "epochs": 3,
            "channels": 2,
            "batch_size": 20,
            "warmup_epochs": 0,
            "checkpoint_seconds": 0.0,
            "compile_cache": "off",
            "out": str(tmp_path / "run"),
        }
        return Config(**options | changes).resolved()

    return make


def tiny_data(train=50, test=23, classes=4, size=8, dtype=np.uint8, val=0):
    """A Dataset of pictures that are easy to tell apart."""
    rng = np.random.default_rng(0)
    shades = rng.integers(0, 200, (classes, size, size, 1))

    def part(count):
        labels = rng.integers(0, classes, count).astype(np.int32)
        images = shades[labels] + rng.integers(0, 56, (count, size, size, 1))
        images = images.astype(np.uint8)
        return (images if dtype == np.uint8 else (images / 255).astype(dtype)), labels

    parts = [*part(train), *part(test)]
    return Dataset("tiny", classes, *parts, *(part(val) if val else ()))


ACCURACY = {"sm": [0.5, 0.6, 0.8, 0.7], "ibnn": [0.6, 0.8, 0.9, 0.9]}


def fake_run(folder, models=("sm", "ibnn"), epochs=4, validation=False):
    """The files of a run of three seeds, without a training."""
    folder.mkdir()
    metrics, seconds = [], []
    for model in models:
        for epoch in range(epochs):
            for seed in range(3):
                metrics.append(_line(model, seed, epoch, validation))
            seconds.append({"model": model, "epoch": epoch + 1, "seconds": 2.0})
    for name, lines in (("metrics.jsonl", metrics), ("seconds.jsonl", seconds)):
        (folder / name).write_text("".join(json.dumps(x) + "\n" for x in lines))
    setup = {
        "data": {"name": "fake", "fingerprint": "0"},
        "parameters": {"sm": 100, "ibnn": 101},
        "versions": {"jax": "1"},
        "device": {"kind": "cpu"},
    }
    (folder / "setup.json").write_text(json.dumps(setup))
    return folder


def _line(model, seed, epoch, validation):
    line = {
        "model": model,
        "seed": seed,
        "epoch": epoch + 1,
        "train_loss": 1.0,
        "train_accuracy": 0.5,
        "test_loss": 2.0 - epoch * (epoch < 3),
        "test_accuracy": ACCURACY[model][epoch] + 0.001 * seed * (model == "ibnn"),
    }
    if validation:
        line |= {"val_loss": [2.0, 0.5, 1.0, 1.0][epoch], "val_accuracy": 0.5}
    if model == "ibnn":
        line |= {
            "lam": [0.01 * epoch],
            "solver_steps": [5.0],
            "solver_steps_max": [7.0],
            "solver_converged": [1.0],
            "solver_residual_max": [1e-6],
        }
    return line


@pytest.fixture(scope="session", name="tiny_data")
def tiny_data_fixture():
    return tiny_data


@pytest.fixture(scope="session", name="fake_run")
def fake_run_fixture():
    return fake_run


@pytest.fixture(scope="session", name="make_pictures")
def make_pictures_fixture():
    return make_pictures
