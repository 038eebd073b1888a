"""GPU kernels: one for a function of a group's points, instead of the hundreds that XLA
launches for its loops, and one for the sums over the neurons of each cell.

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
from jaxtyping import Float, Int

from ibnn_jax.core.batching import on_gpu
from ibnn_jax.ibnn.mean_field.point_system import Arithmetic
from ibnn_jax.ibnn.mean_field.quadrature import Place
from ibnn_jax.ibnn.sigmas import Sigma, tanh

# Numbers per group and array; the matrices between these live in a thread block's
# registers
LARGEST = 128
ROWS, WARPS = 64, 1  # neurons that `moments_kernel` takes at a time, and its warps


def per_group(how: Arithmetic, f: Callable, *arrays: Array):
    """f(how, *arrays), where every array and every leaf of the result is led by groups,
    which f does not mix, and sigma is tanh.

    On NVIDIA GPUs each group gets a thread block (a Pallas kernel), and its loops stop
    on their own: left to XLA, every step of every loop is a row of kernels and a wait
    for the loop's condition, next to which the arithmetic on so little is nothing.

    A kernel needs float32 rows of a power of two up to `LARGEST`, and an f made of what
    Pallas knows: elementwise functions, broadcasts, sums, maxima and while loops. So f
    gets another arithmetic there. Other rows, and other devices, get f as it is. Which
    of both is settled when the program is lowered; one that is exported gets f.
    """
    fits = all(_fits(n) for n in _row_lengths(arrays))
    loops = partial(f, how)
    return _in_kernel_or_not(f.__name__, fits, partial(kernel, f), loops, *arrays)


def moments(place: Place, v: Float[Array, "G n"] | float) -> list[Float[Array, "G m"]]:
    """place.moments(v); on NVIDIA GPUs by a kernel, for which the cells are one less
    than a power of two up to `LARGEST`.
    """
    count, rest = place.cells.count, [v] if isinstance(v, Array) else []

    def program(place, w=v):
        return moments_kernel(place.cell, place.u, w, count)

    def loops(place, w=v):
        return place.moments(w)

    fits = _fits(count + 1)
    return _in_kernel_or_not("cell_moments", fits, program, loops, place, *rest)


def _fits(length: int) -> bool:
    return length <= LARGEST and not length & (length - 1)


def _in_kernel_or_not(name: str, fits: bool, program: Callable, loops: Callable, *args):
    """program(*args), which is a kernel, where that is possible; else loops(*args)."""
    leaves, tree = jax.tree.flatten(args)
    fits &= all(x.dtype in (jnp.float32, jnp.int32) for x in leaves)
    fits &= isinstance(leaves[0].shape[0], int)  # else a symbol under jax.export
    flat = [lambda *x, f=f: f(*jax.tree.unflatten(tree, x)) for f in (program, loops)]
    if not (on_gpu() and fits and _kernel_works(name, flat[0], leaves)):
        return loops(*args)
    of_kernel = jax.make_jaxpr(flat[0])(*leaves)
    of_loops, shapes = jax.make_jaxpr(flat[1], return_shape=True)(*leaves)
    outputs = _either.bind(*leaves, loops=of_loops, kernel=of_kernel)
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs)


def kernel(f: Callable, *arrays: Array, interpret: bool = False):
    """`per_group` on an NVIDIA GPU; interpret: anywhere, slowly."""
    # Imported where a GPU asks for them: they take a while, and may not be there.
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    f = partial(f, IN_KERNEL)
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
            num_warps=max(1, max(_row_lengths(arrays)) // 16), num_stages=1
        ),
        interpret=interpret,
        name=f"ibnn_{f.func.__name__}",
    )(*arrays)
    return jax.tree.unflatten(tree, results)


def moments_kernel(
    cell: Int[Array, "G n"],
    u: Float[Array, "G n"],
    v: Float[Array, "G n"] | float,
    count: int,
    *,
    interpret: bool = False,
) -> list[Float[Array, "G count"]]:
    """The sums of v, v u, v u^2 and v u^3 over the neurons of each cell.

    Every thread has a cell, and looks at all neurons of the group.
    """
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    (groups, n), length = cell.shape, count + 1
    inputs = [cell, u, v] if isinstance(v, Array) else [cell, u]

    def body(*refs):
        *refs, out = refs
        group, cells = pallas.program_id(0), jnp.arange(length, dtype=jnp.int32)

        def add(k, sums):
            rows = k * ROWS + jnp.arange(ROWS, dtype=jnp.int32)
            inside = rows < n

            def load(ref, other):
                place = ref.at[group, pallas.ds(k * ROWS, ROWS)]
                return triton.load(place, mask=inside, other=other)[:, None]

            hit = load(refs[0], -1) == cells[None, :]
            u = load(refs[1], 0.0)
            weight = load(refs[2], 0.0) if refs[2:] else jnp.float32(v)
            term = jnp.where(hit, weight, jnp.zeros_like(u))
            powers = (jnp.ones_like(u), u, u * u, u * u * u)
            return tuple(s + (term * x).sum(0) for s, x in zip(sums, powers))

        zeros = jnp.zeros(length, jnp.float32)
        steps = jnp.int32(0), jnp.int32(-(-n // ROWS))
        sums = jax.lax.fori_loop(*steps, add, (zeros,) * 4)
        for k, total in enumerate(sums):
            out[group, k, :] = total

    totals = pallas.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct((groups, 4, length), jnp.float32),
        grid=(groups,),
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="ibnn_cell_moments",
    )(*inputs)
    return [totals[:, k, :count] for k in range(4)]


def _row_lengths(arrays) -> list[int]:
    return [x.shape[-1] for x in arrays if x.ndim > 1]


@jax.custom_jvp
def _tanh(t: Array) -> Array:
    """By one exponential, which takes a third of the time of Triton's tanh."""
    return 1 - 2 / (1 + jnp.exp(2 * t))


@_tanh.defjvp
def _tanh_slope(primals, tangents):
    y = _tanh(*primals)
    return y, (1 - y * y) * tangents[0]


def _sech2(t: Array) -> Array:
    return 1 - _tanh(t) ** 2


# Sums in place of products: the matrix is in registers, and a thread's columns are
# summed within the thread.
IN_KERNEL = Arithmetic(
    sigma=Sigma(_tanh, tanh.primitive, _sech2, positive_definite=True),
    product=lambda matrix, v: (matrix * v[:, None, :]).sum(-1),
    product_from_left=lambda v, matrix: (v[:, :, None] * matrix).sum(-2),
)


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


def _kernel_works(name: str, program: Callable, arrays) -> bool:
    """Whether the kernel can be made and run; tried once for each name and shape."""
    shapes = tuple(jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for x in arrays)
    device = jax.sharding.get_abstract_mesh().abstract_device
    verdicts = _verdicts.setdefault((jax.default_backend(), device), {})
    if (name, shapes) not in verdicts:
        error = _failure(program, shapes, device)
        verdicts[name, shapes] = error is None
        if error is not None:
            _warn_once(f"{type(error).__name__}: {error}".splitlines()[0])
    return verdicts[name, shapes]


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
