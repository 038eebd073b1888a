"""canonical_convolution is lax.conv_general_dilated, gradients included, wherever it
stands.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import ibnn_jax as ib

LAYOUT = ("NHWC", "HWIO", "NHWC")


def images_and_kernels(height=5, width=4, seeds=()):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(*seeds, 6, 9, 8, 2))), jnp.asarray(
        rng.normal(size=(*seeds, height, width, 2, 3))
    )


def with_gradients(convolution, padding="SAME"):
    def f(x, kernel):
        y, back = jax.vjp(
            lambda x, kernel: convolution(
                x, kernel, (1, 1), padding, dimension_numbers=LAYOUT
            ),
            x,
            kernel,
        )
        return y, *back(jnp.cos(y))

    return f


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((0, 3), (2, 1))], ids=str)
@pytest.mark.parametrize("size", [(5, 4), (1, 2)], ids=str)
def test_it_is_the_convolution_and_its_gradients(padding, size):
    args = images_and_kernels(*size)
    assert_same(
        with_gradients(ib.canonical_convolution, padding)(*args),
        with_gradients(lax.conv_general_dilated, padding)(*args),
    )


@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)], ids=str)
def test_a_vmap_over_seeds_inside_a_scan(axes):
    x, kernel = images_and_kernels(seeds=(3,))
    args = [a if axis == 0 else a[0] for a, axis in zip((x, kernel), axes)]

    def scanned(f):
        step = jax.vmap(f, axes)
        return jax.jit(
            lambda *args: lax.scan(lambda c, _: (c, step(*c)), args, length=2)[1]
        )(*args)

    assert_same(
        scanned(with_gradients(ib.canonical_convolution)),
        scanned(with_gradients(lax.conv_general_dilated)),
    )


def test_images_that_share_a_kernel_are_not_taken_one_by_one():
    x, kernel = images_and_kernels(seeds=(3,))

    def each(x):
        return jax.vmap(
            lambda x: ib.canonical_convolution(x[None], kernel[0], (1, 1), "SAME")[0]
        )(x)

    def gradient(x):
        return jax.grad(lambda x: (each(x) ** 2).sum())(x)

    for f in (each, gradient):
        assert "while" not in jax.jit(f).lower(x[0]).as_text()
    expected = lax.conv_general_dilated(
        x[0], kernel[0], (1, 1), "SAME", dimension_numbers=LAYOUT
    )
    np.testing.assert_allclose(each(x[0]), expected, rtol=1e-10, atol=1e-10)


def test_a_network_learns_the_same_with_it():
    images = images_and_kernels()[0].astype(jnp.float32)

    def gradient(**options):
        neuron = partial(ib.ImplicitBias, lam=-0.5)
        model = ib.UCN(
            (9, 8, 2), 4, layers=2, neuron=neuron, rngs=nnx.Rngs(0), **options
        )
        return nnx.to_pure_dict(
            nnx.grad(lambda model: (model(images) ** 2).sum())(model)
        )

    found, expected = (
        gradient(conv_general_dilated=ib.canonical_convolution),
        gradient(),
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found,
        expected,
    )


@pytest.mark.parametrize("options, message", [
    ({"dimension_numbers": ("NCHW", "OIHW", "NCHW")}, "NHWC"),
    ({"strides": (2, 1)}, "strides"),
    ({"rhs_dilation": (2, 2)}, "rhs_dilation"),
    ({"feature_group_count": 2}, "feature_group_count"),
], ids=str)  # fmt: skip
def test_what_it_does_not_do_is_an_error(options, message):
    x, kernel = images_and_kernels()
    with pytest.raises(ValueError, match=message):
        ib.canonical_convolution(
            x, kernel, **{"strides": (1, 1), "padding": "SAME"} | options
        )
