"""Every solver traces under strict promotion of ranks and dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ibnn_jax as ib

SOLVERS = [
    ib.MeanField(),
    ib.Newton(),
    ib.Picard(),
    ib.Anderson(),
    ib.Broyden(),
    ib.GradientDescent(),
]
COUPLINGS = {
    "uniform": ib.Uniform((-3, -2)),
    "window": ib.Window((3, 3)),
    "dense": ib.Dense(np.full((3, 3), 1 / 3, np.float32)),
}


@pytest.fixture(autouse=True)
def strict():
    ranks = jax.numpy_rank_promotion("raise")
    with ranks, jax.numpy_dtype_promotion("strict"):
        yield


def trace(coupling, dtype=jnp.float32, **options):
    """The dtype of z, traced with its gradients; nothing is compiled."""
    y = jax.ShapeDtypeStruct((2, 12, 12, 3), dtype)

    def f(y, lam, p):
        z = ib.implicit_bias(y, lam, p, coupling, **options)
        return z.astype(jnp.float32).sum(), z

    gradient = jax.grad(f, (0, 1, 2), has_aux=True)
    return jax.eval_shape(gradient, y, jnp.float32(-0.5), jnp.float32(9))[1].dtype


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_solvers(solver):
    assert trace(COUPLINGS["uniform"], solver=solver) == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
@pytest.mark.parametrize("name", COUPLINGS)
def test_couplings_and_dtypes(name, dtype):
    assert trace(COUPLINGS[name], dtype) == dtype


@pytest.mark.parametrize(
    "adjoint", [ib.Implicit(any_order=True), ib.Unrolled(3), ib.Phantom(2)], ids=repr
)
def test_adjoints(adjoint):
    trace(COUPLINGS["window"], adjoint=adjoint)


def test_the_network():
    model = ib.UCN((12, 12, 1), 3, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, x):
        return (nnx.merge(graph, params, rest, copy=True)(x) ** 2).sum()

    x = jax.ShapeDtypeStruct((2, 12, 12, 1), jnp.float32)
    jax.eval_shape(jax.grad(loss), params, x)
