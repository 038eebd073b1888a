"""An epoch of training lowers for GPUs, with kernels, and for TPUs; neither is here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.config import Config
from train.engine import program
from train.engine.objective import Pace

SHAPES = {"fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}  # UCN(1,3), UCN(3,8)


@pytest.fixture
def epoch_text(traced_for):
    """The text of a compiled epoch, as lowered for a platform."""

    def text(platform, dataset, seeds) -> str:
        config = Config(dataset=dataset, model="ibnn", seeds=seeds)
        shape = SHAPES[dataset]
        images = jax.ShapeDtypeStruct((256, *shape), jnp.uint8)
        labels = jax.ShapeDtypeStruct((256,), jnp.int32)
        evaluated = images, labels, jax.ShapeDtypeStruct((256,), bool)
        pace = Pace(np.float32(0.01))
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), seeds))
        with traced_for(platform), jax.enable_x64(False):
            programs = program.EnsembleProgram(config.resolved(), shape, 10, True)
            state = jax.eval_shape(programs.init, keys)
            traced = programs.epoch.trace(
                state, pace, keys, (images, labels), evaluated
            )
            return traced.lower(lowering_platforms=(platform,)).as_text()

    return text


@pytest.mark.parametrize(
    "dataset, seeds", [("fashion_mnist", 1), ("fashion_mnist", 20), ("cifar10", 1)]
)
def test_an_epoch_lowers_for_cuda_with_kernels(epoch_text, dataset, seeds):
    text = epoch_text("cuda", dataset, seeds)
    assert 'name = "ibnn_newton"' in text
    assert 'name = "ibnn_conjugate"' in text


def test_an_epoch_lowers_for_tpus(epoch_text):
    text = epoch_text("tpu", "fashion_mnist", 20)
    assert "custom_call" not in text
