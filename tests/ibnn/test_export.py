"""`jax.export` with a symbolic batch, for several platforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import ibnn_jax as ib

PLATFORMS = ("cpu", "cuda", "tpu")
RNG = np.random.default_rng(0)


def exported(f, shape):
    """f, exported for any batch."""
    (batch,) = export.symbolic_shape("batch")
    x = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    return export.export(jax.jit(f), platforms=PLATFORMS)(x).call


@pytest.mark.parametrize(
    "coupling, shape",
    [
        (ib.Uniform((-3, -2)), (12, 12, 2)),
        (ib.Window((3, 3)), (5, 5, 1)),
        (ib.Dense(np.full((6, 6), 1 / 6, np.float32)), (6,)),
    ],
    ids=["uniform", "window", "dense"],
)
def test_a_solve(coupling, shape):
    def f(y):
        return ib.implicit_bias(y, -0.5, 10.0, coupling)

    y = jnp.asarray(RNG.normal(size=(3, *shape)), jnp.float32)
    np.testing.assert_allclose(exported(f, shape)(y), f(y), atol=1e-5)


def test_a_group_is_of_a_known_size():
    with pytest.raises(ValueError, match="leave the batch open, not a group"):
        exported(lambda y: ib.implicit_bias(y, -0.5, 10.0, ib.Uniform((0,))), (4,))


def test_a_network():
    model = ib.UCN((12, 12, 1), 3, rngs=nnx.Rngs(0))
    model.eval()
    graph, state = nnx.split(model)

    def f(x):
        return nnx.merge(graph, state)(x)

    x = jnp.asarray(RNG.random((2, 12, 12, 1)), jnp.float32)
    np.testing.assert_allclose(exported(f, (12, 12, 1))(x), f(x), atol=1e-5)
