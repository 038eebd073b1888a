"""The equation in Equinox: one example at a time under vmap, gradients, the bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ibnn_jax as ib

eqx = pytest.importorskip("equinox", reason="it needs pip install '.[test]'")

P, COUPLING = 10.0, ib.Uniform((-1,))
X = jax.random.normal(jax.random.key(1), (6, 4))


class Hidden(eqx.Module):
    affine: eqx.nn.Linear
    lam: jax.Array
    coupling: ib.Uniform | ib.Dense = COUPLING

    def __call__(self, x):
        y = self.affine(x)
        return jax.nn.relu(ib.implicit_bias(y, self.lam, P, self.coupling))


@pytest.fixture
def hidden():
    return Hidden(eqx.nn.Linear(4, 5, key=jax.random.key(0)), jnp.array(-0.3))


def batched(hidden, x):
    """The same without vmap: groups along axis 0."""
    y = x @ hidden.affine.weight.T + hidden.affine.bias
    return jax.nn.relu(ib.implicit_bias(y, hidden.lam, P, COUPLING))


def test_a_vmap_over_examples_is_the_batch(hidden):
    found = eqx.filter_jit(eqx.filter_vmap(hidden))(X)
    np.testing.assert_allclose(found, batched(hidden, X), rtol=1e-4, atol=1e-6)


def test_its_gradients_are_those_of_the_batch(hidden):
    found = eqx.filter_grad(lambda h: (jax.vmap(h)(X) ** 2).sum())(hidden)
    expected = eqx.filter_grad(lambda h: (batched(h, X) ** 2).sum())(hidden)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert float(jnp.abs(found.lam)) > 0


def test_lam_is_brought_back_by_a_pure_function(hidden):
    @eqx.filter_jit
    def project(hidden):
        lam = ib.project_lam(hidden.lam, P, hidden.coupling)
        return eqx.tree_at(lambda h: h.lam, hidden, lam)

    past = eqx.tree_at(lambda h: h.lam, hidden, jnp.array(7.0))
    np.testing.assert_allclose(project(past).lam, 0.095, rtol=1e-6)
    np.testing.assert_array_equal(project(hidden).lam, hidden.lam)
    with pytest.raises(TypeError, match="project_lam"):
        ib.project(hidden)


def test_the_weights_of_a_dense_coupling_are_leaves(hidden):
    dense = Hidden(hidden.affine, hidden.lam, ib.Dense(np.full((5, 5), 0.2)))
    found = jax.vmap(dense)(X)
    np.testing.assert_allclose(found, batched(hidden, X), rtol=1e-3, atol=1e-5)
    gradient = eqx.filter_grad(lambda h: (jax.vmap(h)(X) ** 2).sum())(dense)
    w = gradient.coupling.w
    assert w.shape == (5, 5) and np.isfinite(w).all() and np.abs(w).max() > 0
