"""How work is laid out on a device: blocks, merged vmaps, a masked few groups.

Why XLA needs what is done here: docs/notes/xla.md.
"""

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float

from ibnn_jax.core.problem import AbstractProblem

BLOCK = 1_000_000  # numbers of one array that a CPU treats together: they stay in cache
FEW_CPU, FEW_OTHER = 300_000, 30_000_000  # likewise for matrices in `run_where`

F = TypeVar("F", bound=Callable)
T = TypeVar("T")


def platform() -> str:
    """The platform that sizes are chosen for while a program is traced.

    Sizes of arrays are fixed by tracing, before JAX knows what it lowers for. They
    suit the device of the mesh that is set, else `jax.default_device`, else the
    default backend. A program for other devices is right all the same; to give it
    their sizes too, trace it under an AbstractMesh with such an AbstractDevice. What
    does not change a size is chosen by `jax.lax.platform_dependent`, later.
    """
    mesh = jax.sharding.get_abstract_mesh()
    default = jax.config.jax_default_device  # pyright: ignore
    for device in (mesh.abstract_device, default):
        name = device if isinstance(device, str) else getattr(device, "platform", None)
        if name:
            return "gpu" if name in ("cuda", "rocm") else name
    return jax.default_backend()


def on_cpu() -> bool:
    return platform() == "cpu"


def on_gpu() -> bool:
    return platform() == "gpu"


def explicit_spec(x: Array) -> PartitionSpec:
    """How x is sharded over explicit axes of a mesh, one entry per axis of x."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    given = tuple(sharding.spec) if sharding is not None else ()
    return PartitionSpec(*given, *[None] * (x.ndim - len(given)))


def full_precision(f: F) -> F:
    """f with its products in full float32, whatever the caller's default is.

    It has to wrap every function that JAX traces later than its caller: the rules of
    custom_vjp and of custom_vmap do not see a context that was open around the call.
    """

    @wraps(f)
    def wrapped(*args, **kwargs):
        with jax.default_matmul_precision("highest"):
            return f(*args, **kwargs)

    return wrapped  # type: ignore


def select(mask: Bool[Array, "G"], new: T, old: T) -> T:
    """Per group, new where mask and old elsewhere.

    By jnp.where, so that a NaN in what is not taken cannot leak.
    """

    def choose(a, b):
        return jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)


def product(
    matrix: Float[Array, "G i k"], v: Float[Array, "G k"]
) -> Float[Array, "G i"]:
    """matrix v in every group."""
    return jnp.einsum("gik,gk->gi", matrix, v)


def product_from_left(
    v: Float[Array, "G k"], matrix: Float[Array, "G k i"]
) -> Float[Array, "G i"]:
    """v matrix in every group."""
    return jnp.einsum("gk,gki->gi", v, matrix)


def replace_where(mask: Bool[Array, "G"], fills, *arrays: Float[Array, "G ..."]):
    """The arrays with the groups of `mask` filled; untouched where there are none.

    A branch on CPUs, because XLA then lays its results out once; accelerators would
    wait for it longer than they select. See
    docs/notes/xla.md#branches-that-lay-results-out.
    """

    def replaced(mask, *arrays):
        filled = zip(fills, arrays)
        return tuple(jnp.where(mask[:, None], fill, x) for fill, x in filled)

    def branched(mask, *arrays):
        return jax.lax.cond(
            mask.any(), replaced, lambda _, *arrays: arrays, mask, *arrays
        )

    return jax.lax.platform_dependent(mask, *arrays, cpu=branched, default=replaced)


def run_where(mask: Bool[Array, "G"], f: Callable, x, *operands, side: int):
    """x with f(x, *operands) in the groups of `mask`: for a costly f that few need.

    f makes matrices of side^2 numbers per group. It takes as many groups at a time as
    keep these in a CPU's cache, those of the mask only, so it never runs when there
    are none. Every leaf of x and of the operands is led by groups.
    """
    chunk = max(1, (FEW_CPU if on_cpu() else FEW_OTHER) // side**2)
    return run_in_chunks(mask, ~mask, chunk, f, x, *operands)


def run_in_chunks(
    mask: Bool[Array, "G"],
    key: Array,
    chunk: int,
    f: Callable,
    x,
    *operands,
    kind: Array | None = None,
):
    """x with f(x, *operands) in the groups of `mask`, `chunk` of them at a time.

    They are taken by ascending `key` [G]; every key inside the mask must be less than
    every key outside. Groups of different `kind` [G] are not taken together; a larger
    key must not have a smaller kind. Every leaf of x and of the operands is led by
    groups.
    """
    groups = mask.shape[0]
    if isinstance(groups, int) and groups == 0:
        return x
    if isinstance(groups, int):  # else a symbol under jax.export
        chunk = min(chunk, groups)
    count = mask.sum(dtype=jnp.int32)

    def needed(x):
        order = jnp.argsort(key, stable=True).astype(jnp.int32)
        order = jnp.pad(order, (0, chunk))  # what lies beyond `count` is not used

        def body(carry):
            start, x = carry
            rows = jax.lax.dynamic_slice(order, (start,), (chunk,))
            asked = start + jnp.arange(chunk, dtype=jnp.int32) < count
            if kind is not None:
                asked &= kind[rows] == kind[rows[0]]
            taken = jnp.where(asked, rows, rows[0])  # the others repeat the first
            part = jax.tree.map(lambda a: a.at[taken].get(mode="clip"), (x, *operands))
            new = f(*part)
            put_at = jnp.where(asked, rows, groups)

            def put(old, a):
                return old.at[put_at].set(a, mode="drop")

            return start + asked.sum(dtype=jnp.int32), jax.tree.map(put, x, new)

        start = jnp.zeros_like(count, dtype=jnp.int32)
        return jax.lax.while_loop(lambda carry: carry[0] < count, body, (start, x))[1]

    # A branch: docs/notes/xla.md#a-branch-not-an-empty-loop.
    return jax.lax.cond(count > 0, needed, lambda x: x, x)


def in_blocks(
    f: Callable, row: Callable[[AbstractProblem], int], block: int = BLOCK
) -> Callable:
    """f(problem, *arrays), on CPUs for a block of groups at a time.

    A block's arrays stay in the cache, and its loops stop on their own. Accelerators
    get all groups at once. Every leaf of the arrays is led by groups.

    Args:
        row: problem -> how many numbers per group the largest array of f has.
        block: how many of them are treated together.
    """

    def call(problem: AbstractProblem, *rest):
        grouped, join = problem.parts()
        groups = jax.tree.leaves(grouped)[0].shape[0]
        most = max(1, block // row(problem))
        symbolic = not isinstance(groups, int)  # under jax.export
        if symbolic or not on_cpu() or groups <= most:
            return f(problem, *rest)
        count, size = _equal_blocks(groups, most)

        def split(x):  # the last block is filled up with copies of the last group
            width = ((0, count * size - groups), *[(0, 0)] * (x.ndim - 1))
            return jnp.pad(x, width, mode="edge").reshape(count, size, *x.shape[1:])

        blocks = jax.tree.map(split, (grouped, rest))

        def cut(k):
            def take(x):
                return jax.lax.dynamic_index_in_dim(x, k, keepdims=False)

            return jax.tree.map(take, blocks)

        def blank(_):
            return jax.tree.map(lambda x: jnp.zeros_like(x[0]), blocks)

        # A branch that is always taken, so that a block has arrays of its own:
        # docs/notes/xla.md#branches-that-are-always-taken.
        def treat(k):
            grouped, rest = jax.lax.cond(k < count, cut, blank, k)
            return f(join(grouped), *rest)

        out = jax.lax.map(treat, jnp.arange(count))
        return jax.tree.map(
            lambda x: x.reshape(count * size, *x.shape[2:])[:groups], out
        )

    return call


def _equal_blocks(groups: int, most: int) -> tuple[int, int]:
    """(how many blocks of at most `most` groups hold them, the groups in each)."""
    count = -(-groups // most)
    return count, -(-groups // count)


def merge_vmap(f: Callable) -> Callable:
    """f(problem, *arrays), with a vmap that adds groups, in full precision.

    Groups are independent, so a batch of problems is one problem with more of them:
    loops keep one counter, and no batched scatter or batched loop condition is left
    to XLA. Where what all groups share is batched (a Dense w), f is mapped as usual.
    Of groups that are spread over an explicit mesh, every device solves its own.
    """
    f = full_precision(f)

    def solve(problem, *rest):
        grouped, _ = problem.parts()
        led = jax.tree.map(lambda _: False, problem).parts()[1](_all_true(grouped))
        return _on_devices(f, (problem, *rest), (led, *_all_true(rest)))

    call = jax.custom_batching.custom_vmap(solve)

    def mapped(size, batched, problem, *rest):
        shared = [getattr(batched[0], name) for name in problem.shared]
        if any(jax.tree.leaves(shared)):
            axes = jax.tree.map(lambda b: 0 if b else None, batched)
            return jax.vmap(f, in_axes=tuple(axes), axis_size=size)(problem, *rest)

        grouped, join = problem.parts()
        leaves = (grouped, rest)
        flags = (batched[0].parts()[0], tuple(batched[1:]))
        sizes = jax.tree.map(lambda x, b: x.shape[1 if b else 0], leaves, flags)
        groups = jax.tree.leaves(sizes)[0]

        def merge(x, is_batched):
            x = x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(size * groups, *x.shape[2:])

        grouped, rest = jax.tree.map(merge, leaves, flags)
        out = call(join(grouped), *rest)
        return jax.tree.map(lambda x: x.reshape(size, groups, *x.shape[1:]), out)

    @call.def_vmap
    def rule(size, batched, *args):
        def local(*args):
            leaves = zip(jax.tree.leaves(args), jax.tree.leaves(batched))
            size_here = next(
                (x.shape[0] for x, is_batched in leaves if is_batched), size
            )
            return mapped(size_here, batched, *args)

        out = _on_devices(local, args, tuple(batched))
        return out, _all_true(out)

    return call


def _on_devices(f: Callable, args: tuple, led: tuple):
    """f(*args), on each device's part of what is spread over an explicit mesh.

    led: for each leaf, whether its axis 0 is the one that is spread. So is that of
    every leaf that f returns.
    """
    leaves = zip(jax.tree.leaves(args), jax.tree.leaves(led))
    spread = [x for x, is_led in leaves if is_led and explicit_spec(x)[0]]
    if not spread:
        return f(*args)
    names = explicit_spec(spread[0])[0]
    spec = PartitionSpec(names)
    specs = jax.tree.map(lambda b: spec if b else PartitionSpec(), led)

    def local(*args):
        def vary(x, is_led):  # as loops and branches want their operands
            return x if is_led else jax.lax.pcast(x, names, to="varying")

        return f(*jax.tree.map(vary, args, led))

    return jax.shard_map(
        local,
        mesh=jax.typeof(spread[0]).sharding.mesh,
        in_specs=specs,
        out_specs=spec,
    )(*jax.tree.map(jax.sharding.reshard, args, specs))


def _all_true(tree):
    return jax.tree.map(lambda _: True, tree)
