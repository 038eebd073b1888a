"""Work on small groups as one GPU kernel instead of the hundreds that XLA launches for
its loops.
"""

from collections.abc import Callable
from functools import partial

import jax
from jax import Array

from ibnn_jax.core.batching import on_gpu

# Numbers per group and array; the matrices between these live in a thread block's
# registers
LARGEST = 128


def per_group(f: Callable, *arrays: Array):
    """f(*arrays), where every array and every leaf of the result is led by groups,
    which f does not mix.

    On NVIDIA GPUs each group gets a thread block (a Pallas kernel), and its loops stop
    on their own: left to XLA, every step of every loop is a row of kernels and a wait
    for the loop's condition, next to which the arithmetic on so little is nothing.
    Needs rows of a power of two up to `LARGEST`, and an f made of what Pallas knows:
    elementwise functions, broadcasts, sums, maxima and while loops; other rows, and
    other devices, get f as it is."""
    length = _row_length(arrays)
    if not on_gpu() or length > LARGEST or length & (length - 1):
        return f(*arrays)
    return jax.lax.platform_dependent(*arrays, cuda=partial(kernel, f), default=f)


def kernel(f: Callable, *arrays: Array, interpret: bool = False):
    """`per_group` on an NVIDIA GPU; interpret: anywhere, slowly."""
    from jax.experimental import (
        pallas,
    )  # only where there is a GPU: takes a while to import
    from jax.experimental.pallas import triton

    shapes, tree = jax.tree.flatten(jax.eval_shape(f, *arrays))

    def body(*refs):
        found = f(*(ref[...] for ref in refs[: len(arrays)]))
        for ref, x in zip(refs[len(arrays) :], jax.tree.leaves(found), strict=True):
            ref[...] = x

    def block(x):
        return pallas.BlockSpec(
            (1, *x.shape[1:]), lambda group: (group, *[0] * (x.ndim - 1))
        )

    results = pallas.pallas_call(
        body,
        out_shape=shapes,
        grid=(len(arrays[0]),),
        in_specs=[block(x) for x in arrays],
        out_specs=[block(x) for x in shapes],
        compiler_params=triton.CompilerParams(
            num_warps=max(1, _row_length(arrays) ** 2 // 2048), num_stages=1
        ),
        interpret=interpret,
        name=f"ibnn_{f.__name__}",
    )(*arrays)
    return jax.tree.unflatten(tree, results)


def _row_length(arrays) -> int:
    return max(x.shape[-1] for x in arrays if x.ndim > 1)
