"""A 2-D convolution that stays fast on CPUs inside loops and under vmap.

XLA:CPU has a fast convolution for operands in one layout. Other layouts it rewrites,
but not inside loops: there the gradient of a kernel falls back to a naive one. And a
vmap over kernels (one per seed) becomes a grouped convolution, which is slow as well.
Here every convolution, of the two gradients too, has that layout, and kernels of a vmap
are taken one by one. See docs/notes/xla.md#convolutions.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec
from jaxtyping import Float

from ibnn_jax.core.batching import explicit_spec, on_cpu

LAYOUT = ("NHWC", "HWIO", "NHWC")
Pads = tuple[tuple[int, int], tuple[int, int]]


def canonical_convolution(
    inputs: Float[Array, "N H W I"],
    kernel: Float[Array, "h w I O"],
    strides,
    padding,
    *,
    dimension_numbers=None,
    precision=None,
    **others,
) -> Float[Array, "N H W O"]:
    """`jax.lax.conv_general_dilated` of stride 1 in NHWC, for `nnx.Conv` and `UCN`.

    Differentiable once, in reverse mode. Inside a scan over steps it took a twentieth
    of the time (`python -m benchmarks ensemble`).

    Args:
        inputs: images. kernel: filters.
        strides: 1 along both axes.
        padding: "SAME", "VALID" or ((top, bottom), (left, right)).
        dimension_numbers: NHWC, HWIO and NHWC, or None.
        precision: as in `jax.lax.conv_general_dilated`.
        **others: its other options, none of which may ask for more than a plain
            convolution.

    Raises:
        ValueError: inputs or kernel not of rank 4, a layout that is not NHWC, strides
            other than 1, dilations, or groups.
    """
    layout = (
        lax.conv_dimension_numbers(inputs.shape, kernel.shape, LAYOUT)
        if inputs.ndim == kernel.ndim == 4
        else None
    )
    if layout is None or dimension_numbers not in (None, layout, LAYOUT):
        raise ValueError(
            f"canonical_convolution takes NHWC and HWIO; got {dimension_numbers} for "
            f"{inputs.shape} and {kernel.shape}"
        )
    options = {"strides": strides, **others}
    general = {
        name: value
        for name, value in options.items()
        if value is not None and set(jax.tree.leaves(value)) != {1}
    }
    if general:
        raise ValueError(
            "canonical_convolution has stride 1, no dilation and no groups; "
            f"got {general}. Use jax.lax.conv_general_dilated"
        )
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(
            inputs.shape[1:3], kernel.shape[:2], strides, padding
        )
    return _convolution(inputs, kernel, tuple(map(tuple, padding)), precision)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(x, kernel, pads: Pads, precision):
    return _one_by_one(partial(_forward, pads, precision))(x, kernel)


def _fwd(x, kernel, pads, precision):
    return _convolution(x, kernel, pads, precision), (x, kernel)


def _bwd(pads, precision, saved, g):
    x, kernel = saved
    by_x = _one_by_one(partial(_by_inputs, pads, precision))(g, kernel)
    by_kernel = _one_by_one(partial(_by_kernel, pads, precision), images=False)(x, g)
    return _summed_like(by_x, x), _summed_like(by_kernel, kernel)


_convolution.defvjp(_fwd, _bwd)


def _summed_like(cotangent: Array, primal: Array) -> Array:
    """The cotangent, summed over axes of a shard_map on which primal is the same."""
    axes = _varying(cotangent) - _varying(primal)
    return lax.psum(cotangent, tuple(sorted(axes))) if axes else cotangent


def _varying(x: Array) -> frozenset[str]:
    """The axes of a shard_map on which x differs; jax has two names for them."""
    kind = jax.typeof(x)
    axes = getattr(kind, "manual_axis_type", None)
    return getattr(kind, "vma", frozenset()) if axes is None else axes.varying


def _forward(pads, precision, x, kernel):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), pads, dimension_numbers=LAYOUT, precision=precision
    )


def _by_inputs(pads, precision, g, kernel):
    """The cotangent of x: g with the kernel turned around."""
    pads = [
        (size - 1 - low, size - 1 - high)
        for size, (low, high) in zip(kernel.shape, pads)
    ]
    return _forward(pads, precision, g, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))


def _by_kernel(pads, precision, x, g):
    """The cotangent of the kernel: x with g as a kernel of the size of the image,
    images summed as channels are.
    """
    return _forward(
        pads, precision, x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)
    ).transpose(1, 2, 0, 3)


def _one_by_one(f, images=True):
    """f(a, b) with a vmap that takes one element after the other.

    images: whether a is images; elements that share b then become one larger batch.
    """
    call = jax.custom_batching.custom_vmap(f)

    @call.def_vmap
    def rule(size, batched, *arrays):
        if images and not batched[1]:
            result = call(arrays[0].reshape(-1, *arrays[0].shape[2:]), arrays[1])
            return result.reshape(size, -1, *result.shape[1:]), True
        arrays = [
            x if b else jnp.broadcast_to(x, (size, *x.shape))
            for x, b in zip(arrays, batched)
        ]
        return lax.map(lambda pair: call(*pair), tuple(arrays)), True

    return call


def fast_convolution() -> Callable:
    """`canonical_convolution` on CPUs, jax's own elsewhere."""
    return canonical_convolution if on_cpu() else lax.conv_general_dilated


def general_convolution(inputs: Array, kernel: Array, *args, **kwargs) -> Array:
    """`jax.lax.conv_general_dilated`, also on explicit meshes.

    Where the images are sharded over an explicit axis of a mesh every device convolves
    its own; jax's function asks for a sharding of the result there.

    Raises:
        ValueError: another axis than the images' is sharded.
    """
    spec = explicit_spec(inputs)
    if not any(spec):
        return lax.conv_general_dilated(inputs, kernel, *args, **kwargs)
    if any(spec[1:]):
        raise ValueError(
            f"a convolution of images {inputs.shape} sharded as {spec}: only axis 0, "
            "the images, may be sharded; use jax.sharding.reshard first"
        )
    mapped = jax.shard_map(
        lambda x, kernel: lax.conv_general_dilated(x, kernel, *args, **kwargs),
        mesh=jax.typeof(inputs).sharding.mesh,
        in_specs=(spec, PartitionSpec()),
        out_specs=spec,
    )
    return mapped(inputs, kernel)
