"""Work on small groups as one GPU kernel instead of the hundreds that XLA launches for
its loops.

The kernels are written in Pallas and compiled by its Triton backend, which later
versions of JAX drop. Nothing depends on them: where they cannot be made or run, the
same function is left to XLA, and a warning says so once (docs/notes/gpu.md).
"""

import warnings
from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import mlir

from ibnn_jax.core.batching import on_gpu, summed

# Numbers per group and array; the matrices between these live in a thread block's
# registers
LARGEST = 128


def per_group(f: Callable, *arrays: Array):
    """f(*arrays), where every array and every leaf of the result is led by groups,
    which f does not mix.

    On NVIDIA GPUs each group gets a thread block (a Pallas kernel), and its loops stop
    on their own: left to XLA, every step of every loop is a row of kernels and a wait
    for the loop's condition, next to which the arithmetic on so little is nothing.

    A kernel needs float32 rows of a power of two up to `LARGEST`, and an f made of what
    Pallas knows: elementwise functions, broadcasts, sums, maxima and while loops. So f
    takes its products of matrices and vectors as the option `product`. Other rows, and
    other devices, get f as it is. Which of both is settled when the program is lowered;
    one that is exported gets f.
    """
    length = _row_length(arrays)
    fits = length <= LARGEST and not length & (length - 1)
    single = all(x.dtype == jnp.float32 for x in arrays)
    if not (on_gpu() and fits and single and _kernel_works(f, arrays)):
        return f(*arrays)
    loops, shapes = jax.make_jaxpr(f, return_shape=True)(*arrays)
    as_kernel = jax.make_jaxpr(partial(kernel, f))(*arrays)
    leaves = _either.bind(*arrays, loops=loops, kernel=as_kernel)
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def kernel(f: Callable, *arrays: Array, interpret: bool = False):
    """`per_group` on an NVIDIA GPU; interpret: anywhere, slowly."""
    # Imported where a GPU asks for them: they take a while, and may not be there.
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    f = partial(f, product=summed)
    shapes, tree = jax.tree.flatten(jax.eval_shape(f, *arrays))

    def body(*refs):
        outputs = f(*(ref[...] for ref in refs[: len(arrays)]))
        for ref, x in zip(refs[len(arrays) :], jax.tree.leaves(outputs), strict=True):
            ref[...] = x

    def block(x):
        return pallas.BlockSpec(
            (1, *x.shape[1:]), lambda group: (group, *[0] * (x.ndim - 1))
        )

    results = pallas.pallas_call(
        body,
        out_shape=shapes,
        grid=(arrays[0].shape[0],),
        in_specs=[block(x) for x in arrays],
        out_specs=[block(x) for x in shapes],
        compiler_params=triton.CompilerParams(
            num_warps=max(1, _row_length(arrays) ** 2 // 2048), num_stages=1
        ),
        interpret=interpret,
        name=f"ibnn_{f.func.__name__}",
    )(*arrays)
    return jax.tree.unflatten(tree, results)


def _row_length(arrays) -> int:
    return max(x.shape[-1] for x in arrays if x.ndim > 1)


# The two programs of `per_group`. Not `jax.lax.platform_dependent`: where JAX lowers
# for several platforms at once it lowers each branch for all of them, which a kernel
# does not survive.
_either = Primitive("ibnn_per_group")
_either.multiple_results = True


@_either.def_impl
def _either_outside_jit(*arrays, loops, kernel):
    return jaxpr_as_fun(loops)(*arrays)


@_either.def_abstract_eval
def _either_shapes(*arrays, loops, kernel):
    return loops.out_avals


def _lowered_as(name: str):
    def program(*arrays, **programs):
        return jaxpr_as_fun(programs[name])(*arrays)

    return mlir.lower_fun(program, multiple_results=True)


_loops, _kernel = _lowered_as("loops"), _lowered_as("kernel")


def _lowered_for_cuda(context, *arrays, **programs):
    # JAX promises exported programs to later versions of itself, kernels it does not.
    exported = context.module_context.lowering_parameters.for_export
    return (_loops if exported else _kernel)(context, *arrays, **programs)


mlir.register_lowering(_either, _loops)
mlir.register_lowering(_either, _lowered_for_cuda, platform="cuda")


def _kernel_works(f: Callable, arrays) -> bool:
    """Whether the kernel of f can be made and run; tried once for each f and shape."""
    shapes = tuple(jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for x in arrays)
    device = jax.sharding.get_abstract_mesh().abstract_device
    verdicts = _verdicts.setdefault((jax.default_backend(), device), {})
    if (f.__name__, shapes) not in verdicts:
        error = _failure(partial(kernel, f), shapes, device)
        verdicts[f.__name__, shapes] = error is None
        if error is not None:
            _warn_once(f"{type(error).__name__}: {error}".splitlines()[0])
    return verdicts[f.__name__, shapes]


_verdicts: dict = {}


def _failure(program: Callable, shapes, device) -> Exception | None:
    """What stops a kernel, if anything does.

    It is compiled and run for one group where there is a GPU. Elsewhere, for a GPU that
    only the mesh names, it is lowered.
    """
    # Not under the mesh of the caller, whose axes are none of these arrays'.
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    try:
        with jax.sharding.use_abstract_mesh(mesh):
            traced = jax.jit(program).trace(*shapes)
            lowered = traced.lower(lowering_platforms=("cuda",))
        if jax.default_backend() == "gpu":
            ones = [np.ones(x.shape, x.dtype) for x in shapes]
            jax.block_until_ready(lowered.compile()(*ones))
    except Exception as error:  # whatever it is, XLA's loops do the same
        return error
    return None


@lru_cache
def _warn_once(reason: str) -> None:
    warnings.warn(
        f"the GPU kernels of MeanField cannot be used here ({reason}); XLA's loops do "
        "the same, more slowly. MeanField(kernels=False) asks for them without trying",
        stacklevel=2,
    )
