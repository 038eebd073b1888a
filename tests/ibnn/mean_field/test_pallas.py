"""The GPU kernels of small groups: interpreted here, and lowered for CUDA, which needs
no GPU.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ibnn_jax as ib
from ibnn_jax.ibnn.mean_field import pallas, solver

COUPLING = ib.Uniform((-1,))


def both(y, lam, v, cells=None):
    """z, and the gradients in y and lam."""
    z, back = jax.vjp(
        lambda y, lam: ib.implicit_bias(
            y, lam, 10.0, COUPLING, solver=ib.MeanField(cells=cells)
        ),
        y,
        lam,
    )
    return z, *back(v)


def arguments():
    y, v = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 200)), jnp.float32)
    y = y.at[2].multiply(8.0)  # needs a second attempt, of 128 points
    return y, jnp.array([-5.0, -0.5, -0.5, 0.0, 0.05, 0.095])[:, None], v


def test_a_kernel_does_what_the_loops_do(monkeypatch):
    loops = both(*arguments(), cells=(15, 63))
    jax.clear_caches()
    lengths = []

    def interpreted(f, *arrays):
        lengths.append(arrays[0].shape[-1])
        return pallas.kernel(f, *arrays, interpret=True)

    monkeypatch.setattr(solver, "per_group", interpreted)
    for found, expected in zip(both(*arguments(), cells=(15, 63)), loops):
        np.testing.assert_allclose(
            found, expected, rtol=1e-3, atol=1e-4
        )  # both stop at the tolerance
    assert set(lengths) >= {32, 128}


@pytest.mark.parametrize("cells, attempts", [(None, 1), ((15, 63), 2)], ids=str)
def test_on_cuda_both_solvers_are_kernels(lowered, cells, attempts):
    text = lowered("cuda", partial(both, cells=cells), *arguments())
    for kernel in ("ibnn_newton", "ibnn_conjugate"):
        assert text.count(f'name = "{kernel}"') == attempts


def test_a_sigma_of_ones_own_and_kernels_off_are_left_to_xla(lowered):
    arctan = ib.Sigma(jnp.arctan, lambda t: t * jnp.arctan(t) - jnp.log1p(t * t) / 2)
    for coupling, option in [
        (ib.Uniform((-1,), arctan), ib.MeanField()),
        (COUPLING, ib.MeanField(kernels=False)),
    ]:
        solve = partial(
            ib.implicit_bias, lam=-0.5, p=10.0, coupling=coupling, solver=option
        )
        assert "ibnn_newton" not in lowered("cuda", solve, arguments()[0])


def test_other_devices_and_other_rows_get_the_function_itself(monkeypatch):
    def twice(x):
        return 2 * jnp.cumsum(x, -1)  # no kernel could do this

    assert pallas.per_group(twice, jnp.ones((3, 32)))[0, -1] == 64
    monkeypatch.setattr(pallas, "on_gpu", lambda: True)
    assert pallas.per_group(twice, jnp.ones((3, 31)))[0, -1] == 62
    assert pallas.per_group(twice, jnp.ones((3, 256)))[0, -1] == 512
    assert (
        jax.jit(lambda x: pallas.per_group(lambda x: 2 * x, x))(jnp.ones((3, 32))).sum()
        == 192
    )  # a CPU beside a GPU
