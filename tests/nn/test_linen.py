"""The equation in Flax Linen: the same network as in NNX, its gradients, its bound."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ibnn_jax as ib

P = 10.0
X = jax.random.normal(jax.random.key(1), (6, 4))


class Hidden(linen.Module):
    """As `IBNNLinear`, in Linen."""

    features: int
    coupling: ib.Uniform | ib.Dense = ib.Uniform((-1,))

    @linen.compact
    def __call__(self, x):
        lam = self.param("lam", linen.initializers.constant(-0.3), (), x.dtype)
        y = linen.Dense(self.features, param_dtype=x.dtype)(x)
        return linen.relu(ib.implicit_bias(y, lam, P, self.coupling))


@pytest.fixture(scope="module")
def pair():
    """(a Linen module, its parameters, an NNX layer with the same ones)."""
    hidden = Hidden(5)
    params = hidden.init(jax.random.key(0), X)["params"]
    layer = ib.IBNNLinear(
        4, 5, lam=-0.3, p=P, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
    )
    layer.affine.kernel[...] = params["Dense_0"]["kernel"]
    layer.affine.bias[...] = params["Dense_0"]["bias"]
    return hidden, params, layer


def test_it_is_the_layer_of_nnx(pair):
    hidden, params, layer = pair
    found = hidden.apply({"params": params}, X)
    np.testing.assert_allclose(found, layer(X), rtol=1e-4, atol=1e-6)


def test_its_gradients_are_those_of_nnx(pair):
    hidden, params, layer = pair
    found = jax.jit(jax.grad(lambda p: (hidden.apply({"params": p}, X) ** 2).sum()))(
        params
    )
    expected = nnx.grad(lambda layer: (layer(X) ** 2).sum())(layer)
    pairs = [
        (found["lam"], expected["implicit"]["lam"]),
        (found["Dense_0"]["kernel"], expected["affine"]["kernel"]),
        (found["Dense_0"]["bias"], expected["affine"]["bias"]),
    ]
    for a, b in pairs:
        np.testing.assert_allclose(a, b[...], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "constraint, largest", [("unique", 0.095), ("nonpositive", 0.0), (None, 7.0)]
)
def test_lam_is_brought_back_by_a_pure_function(pair, constraint, largest):
    _, params, _ = pair
    params = params | {"lam": jnp.array(7.0)}

    @jax.jit
    def project(params):
        lam = ib.project_lam(params["lam"], P, ib.Uniform((-1,)), constraint)
        return params | {"lam": lam}

    found = project(params)
    np.testing.assert_allclose(found["lam"], largest, rtol=1e-6)
    assert found["lam"].dtype == params["lam"].dtype
    with pytest.raises(TypeError, match="project_lam"):
        ib.project(params)


def test_a_dense_coupling_is_a_field_of_the_module():
    w = np.full((5, 5), 0.2)
    coupled, uniform = Hidden(5, ib.Dense(w)), Hidden(5)
    params = uniform.init(jax.random.key(0), X)
    found, expected = (module.apply(params, X) for module in (coupled, uniform))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
