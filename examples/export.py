"""A trained network as one file that runs without this library, by `jax.export`.

Writing the file needs `pip install flatbuffers`.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from flax import nnx

import ibnn_jax
from examples.data import shapes
from examples.quickstart import train


def save(model: nnx.Module, path: Path, shape: tuple[int, ...]) -> None:
    """Logits as a function of images [*shape], batch included, with the weights."""
    model.eval()
    graph, state = nnx.split(model)

    @jax.jit
    def logits(images):
        return nnx.merge(graph, state)(images)

    images = jax.ShapeDtypeStruct(shape, np.float32)
    path.write_bytes(jax.export.export(logits)(images).serialize())


def serve(path: Path, images: np.ndarray) -> np.ndarray:
    """Probabilities; needs jax alone."""
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    return np.asarray(jax.nn.softmax(exported.call(images)))


def main(path: str = "runs/network.jax", steps: int = 100) -> np.ndarray:
    """Train, save, load, and compare."""
    model = ibnn_jax.UCN((16, 16, 1), 3, layers=1, rngs=nnx.Rngs(0))
    train(model, steps)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    images, _ = shapes(7, seed=2)
    save(model, Path(path), images.shape)
    served = serve(Path(path), images)
    difference = abs(served - np.asarray(jax.nn.softmax(model(images)))).max()
    print(f"{path}: {Path(path).stat().st_size} bytes, difference {difference:.1e}")
    return served


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", default="runs/network.jax")
    main(parser.parse_args().path)
