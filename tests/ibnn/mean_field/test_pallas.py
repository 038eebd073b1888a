"""The GPU kernels of small groups: interpreted here, and lowered for CUDA, which needs
no GPU.
"""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ibnn_jax as ib
from ibnn_jax.ibnn.mean_field import pallas
from ibnn_jax.ibnn.mean_field.point_system import Arithmetic

COUPLING = ib.Uniform((-1,))
HOW = Arithmetic(ib.tanh)


def both(y, lam, v, **options):
    """z, and the gradients in y and lam."""
    option = ib.MeanField(pairwise_max_size=0, **options)
    z, back = jax.vjp(
        lambda y, lam: ib.implicit_bias(y, lam, 10.0, COUPLING, solver=option), y, lam
    )
    return z, *back(v)


def arguments():
    y, v = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 200)), jnp.float32)
    y = y.at[2].multiply(3.0)  # needs a second attempt, of 128 points
    return y, jnp.array([-5.0, -0.5, -0.5, 0.0, 0.05, 0.08])[:, None], v


def test_a_kernel_does_what_the_loops_do(monkeypatch):
    loops = both(*arguments(), cells=(15,))
    jax.clear_caches()
    interpreted = set()

    def per_group(_, f, *arrays):
        interpreted.add(f.__name__)
        return pallas.kernel(f, *arrays, interpret=True)

    def moments(place, v):
        interpreted.add("moments")
        count = place.cells.count
        return pallas.moments_kernel(place.cell, place.u, v, count, interpret=True)

    monkeypatch.setattr(pallas, "per_group", per_group)
    monkeypatch.setattr(pallas, "moments", moments)
    for found, expected in zip(both(*arguments(), cells=(15,)), loops):
        # Both stop at the tolerance.
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    reads = {"read", "read_slope", "read_response", "read_by_p"}
    assert interpreted == reads | {"newton", "conjugate", "moments"}
    jax.clear_caches()


@pytest.mark.parametrize("cells, attempts", [(None, 2), ((15, 63), 2)], ids=str)
def test_on_cuda_both_solvers_are_kernels(lowered, cells, attempts):
    text = lowered("cuda", partial(both, cells=cells), *arguments())
    for kernel in ("newton", "conjugate"):
        assert text.count(f'name = "ibnn_{kernel}"') == attempts
    for kernel in ("cell_moments", "read", "read_slope", "read_response"):
        assert f'name = "ibnn_{kernel}"' in text


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


@pytest.fixture
def gpu_mesh(traced_for):
    """A GPU that is not here, as the mesh in use."""
    with traced_for("cuda"):
        yield


def test_what_is_exported_from_a_gpu_runs_elsewhere(gpu_mesh):
    option = ib.MeanField(cells=(15,), pairwise_max_size=0)
    solve = jax.jit(lambda y: ib.solve(y, -0.5, 10.0, COUPLING, solver=option).value)
    y, *_ = arguments()
    exported = jax.export.export(solve, platforms=("cpu", "cuda", "tpu"))(y)
    np.testing.assert_allclose(exported.call(y), solve(y), rtol=1e-3, atol=1e-4)


def matrix_vector(how, x):
    return how.product(x[:, :, None] * x[:, None, :], x)


def in_order(how, x):
    return jnp.sort(x, -1)  # no kernel does this


@pytest.mark.parametrize("platforms", [("cuda",), ("cpu", "cuda")], ids=str)
def test_the_platform_is_that_of_the_lowering(gpu_mesh, platforms):
    def f(x):
        return pallas.per_group(HOW, matrix_vector, x)

    def text(*platforms):
        traced = jax.jit(f).trace(jnp.ones((3, 32), jnp.float32))
        return traced.lower(lowering_platforms=platforms).as_text()

    assert "ibnn_matrix_vector" in text(*platforms)
    assert "ibnn_matrix_vector" not in text("cpu")


def test_where_a_kernel_cannot_be_made_xla_takes_over_and_says_so_once(gpu_mesh):
    x = jnp.ones((3, 32), jnp.float32)
    f = partial(pallas.per_group, HOW, in_order)
    with pytest.warns(UserWarning, match="kernels of MeanField cannot be used here"):
        assert jax.jit(f).lower(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jax.jit(lambda x: 2 * f(x)).lower(x)


@pytest.mark.parametrize("shape", [(3, 31), (3, 256)], ids=str)
def test_other_rows_get_the_function_itself(gpu_mesh, shape):
    x = jnp.arange(np.prod(shape), 0, -1, dtype=jnp.float32).reshape(shape)
    assert (pallas.per_group(HOW, in_order, x) == x[:, ::-1]).all()


def test_other_devices_get_the_function_itself(traced_for):
    f = partial(pallas.per_group, HOW, matrix_vector)
    with traced_for("tpu"):
        jaxpr = jax.make_jaxpr(f)(jnp.ones((3, 32), jnp.float32))
    assert "ibnn_per_group" not in str(jaxpr)
