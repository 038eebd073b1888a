"""Patches: their sums, and groups of many neurons that no grid serves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ibnn_jax as ib
from ibnn_jax.ibnn.mean_field import sizes
from ibnn_jax.ibnn.mean_field.patches import Patches

N = 600
COUPLING = ib.Uniform((-1,))


def spreads(n):
    """Neurons in one patch, in all neighbours, each in its own, and all of that."""
    rng = np.random.default_rng(0)
    crowd = np.where(np.arange(n) < n - 5, 1e-3 * rng.normal(size=n), 1e6)
    wide = [1e-2, 1.0, 30.0, 1e4]
    return np.stack(
        [crowd, np.full(n, 0.3), rng.standard_cauchy(n)]
        + [s * rng.normal(size=n) for s in wide]
    )


def sums(patches, x, v):
    place = patches.place(x)
    ones, charges = place.charges(), place.charges(v)
    bias, moment = patches.bias(charges), patches.moment(ones)
    return place.read(bias, patches.slope(charges), moment)


def test_sums_over_patches_are_the_sums_over_pairs():
    x = jnp.asarray(spreads(N))
    v = jnp.asarray(np.random.default_rng(1).normal(size=x.shape))
    patches = Patches(N)
    apart = x[:, None, :] - x[:, :, None]
    slope = 1 - jnp.tanh(apart) ** 2
    of_pairs = [k * v[:, None, :] for k in (jnp.tanh(apart), slope)]
    for found, kernel in zip(sums(patches, x, v), [*of_pairs, apart * slope]):
        exact = kernel.mean(-1)
        assert float(jnp.abs(found - exact).max()) < 6 * patches.slope_error


def test_a_group_of_more_patches_than_there_is_room_for_says_so():
    x = jnp.asarray(spreads(N)[-2:])  # in some 200 patches, and in as many as neurons
    found, *_ = sums(Patches(300), x, jnp.ones_like(x))
    assert jnp.isfinite(found[0]).all() and jnp.isnan(found[1]).any()


@pytest.mark.parametrize("lam", [-50.0, -0.5, 0.099])
def test_many_neurons_anywhere(lam):
    """Tails beyond every grid, clumps next to the bound, a strong lam; without pairs.

    Against the pairs of all neurons in float64.
    """
    n, p = 1500, 10.0
    rng = np.random.default_rng(2)
    assert isinstance(sizes.grids_for(n)[-1], Patches)
    clump = np.where(np.arange(n) == 0, 1.0, 0.01 * rng.normal(size=n))
    rows = [10 * rng.normal(size=n), clump, np.full(n, 0.3)]
    rows += [rng.standard_cauchy(n), np.exp(2 * rng.normal(size=n))]
    y, v = np.stack(rows), rng.normal(size=(len(rows), n))

    def gradients(dtype, solver, tol):
        def loss(y, lam, p):
            z, stats = ib.implicit_bias(
                y, lam, p, COUPLING, solver=solver, tol=tol, has_stats=True
            )
            return (jnp.asarray(v, dtype) * z).sum(), (z, stats)

        column = jnp.ones((len(y), 1), dtype)
        args = jnp.asarray(y, dtype), lam * column, p * column
        (_, aux), found = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*args)
        return aux, found

    (z, stats), found = gradients("float32", ib.MeanField(pairwise_max_size=0), None)
    (exact, told), right = gradients("float64", ib.Newton(), 1e-9)
    assert stats.converged.all() and told.converged.all()
    allowed = 1e-4 * (1 + np.abs(y).max(-1) + abs(lam))
    z64 = jnp.asarray(z, exact.dtype)
    bias = jnp.tanh(p * (z64[:, None, :] - z64[:, :, None])).mean(-1)
    assert (jnp.abs(y - lam * bias - z64).max(-1) < allowed).all()
    largest = jnp.abs(right[0]).max(-1)
    assert (jnp.abs(found[0] - right[0]).max(-1) < 0.01 * largest).all()
    u = right[0] - right[0].mean(-1, keepdims=True)
    apart = exact[:, None, :] - exact[:, :, None]
    by_p = (apart * (1 - jnp.tanh(p * apart) ** 2)).mean(-1)
    terms = u * (y - exact) / lam, lam * u * by_p
    for gradient, true, term in zip(found[1:], right[1:], terms):
        sizes_of_terms = jnp.abs(term).sum(-1, keepdims=True)
        allowed = jnp.maximum(0.03 * jnp.abs(true), 0.02 * sizes_of_terms)
        assert (jnp.abs(gradient - true) <= allowed).all()
