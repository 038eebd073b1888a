"""One coupled system in the layout every solver uses: groups by neurons, y [G, n], lam and p [G, 1]."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from ibnn_jax.couplings import Coupling
from ibnn_jax.operators import Operator

NEURONS, PAIRS = 320_000, 1_000_000  # the most that a CPU treats together


class Span(NamedTuple):
    """A range, per group."""

    centre: Float[Array, "G 1"]
    radius: Float[Array, "G 1"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["y", "lam", "p", "op"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Problem:
    """z = y - lam B(z; p) for G independent groups of n neurons."""

    y: Float[Array, "G n"]
    lam: Float[Array, "G 1"]
    p: Float[Array, "G 1"]
    op: Operator

    def residual(self, z: Float[Array, "G n"]) -> Float[Array, "G n"]:
        """r(z) = y - lam B(z) - z = -grad E(z): zero at the solution, the Picard step elsewhere."""
        return self.y - self.lam * self.op.bias(z, self.p) - z

    def hessian(self, z) -> tuple[Callable[[Array], Array], Float[Array, "G n"]]:
        """(v -> (I + lam DB(z)) v, 1 / its dominant diagonal 1 - lam d): the Hessian of the energy (Eqs. 28, 31).

        The diagonal is replaced by 1 where it is not safely positive, which happens only past the uniqueness bound.
        """
        d, kernel = self.op.linearised(z, self.p)
        diagonal = 1 - self.lam * d
        safe = jnp.where(diagonal > 1e-3, diagonal, 1)
        return lambda v: diagonal * v + self.lam * kernel(v), 1 / safe

    def energy(self, z) -> Float[Array, "G"]:
        """E(z) = 1/2 |z - y|^2 - lam/2 sum_ik w_ik S_p(z_k - z_i), [G] (Eq. 5)."""
        return 0.5 * ((z - self.y) ** 2).sum(-1) - self.lam[:, 0] * self.op.potential(
            z, self.p
        )

    def sanitised(self) -> tuple["Problem", Bool[Array, "G"]]:
        """(this problem with groups that hold NaN or infinity replaced by y = 0, lam = 0, p = 1; which groups do not)."""
        parts = (self.y, self.lam, self.p)
        valid = jnp.isfinite(sum(jnp.abs(x) for x in (*self.span(), self.lam, self.p)))[
            :, 0
        ]
        return Problem(*replace_where(~valid, (0, 0, 1), *parts), self.op), valid

    def span(self) -> Span:
        """The range of y."""
        bottom, top = (
            jax.lax.stop_gradient(end)
            for end in (self.y.min(-1, keepdims=True), self.y.max(-1, keepdims=True))
        )
        centre = (
            0.5 * bottom + 0.5 * top
        )  # in halves, whose sum is finite, and rounded: it may lie nearer to one end
        return Span(centre, jnp.maximum(top - centre, centre - bottom))

    def centred(self) -> tuple["Problem", Float[Array, "G 1"]]:
        """(this problem around 0, where its centre was): the equation knows differences only, and small numbers round less."""
        centre = self.span().centre
        return replace(self, y=self.y - centre), centre

    @property
    def unique(self):
        """True where lam is below the uniqueness bound, [G]."""
        return (self.lam < self.op.bound(self.p)).squeeze(-1)

    def tolerance(self, tol: float, span: Span | None = None) -> Float[Array, "G"]:
        """The stopping rule, per group: max|r| <= tol (1 + max|y| + |lam|), where tol is at least 4 eps; span: of y, if known."""
        tol = max(tol, 4 * float(jnp.finfo(self.y.dtype).eps))
        centre, radius = span or self.span()
        return tol * (1 + jnp.abs(centre) + radius + jnp.abs(self.lam))[:, 0]


def replace_where(mask: Bool[Array, "G"], fills, *arrays: Float[Array, "G ..."]):
    """The arrays with groups of `mask` filled; untouched where there are none, which is the usual case.

    On CPUs a branch rather than a select for another reason too: XLA lays its results out once, where it would otherwise repeat
    the transposition of y in every loop that reads it. Accelerators would wait for the branch longer than they select.
    """

    def replaced(*arrays):
        return tuple(
            jnp.where(mask[:, None], fill, x) for fill, x in zip(fills, arrays)
        )

    if jax.default_backend() != "cpu":
        return replaced(*arrays)
    return jax.lax.cond(mask.any(), replaced, lambda *arrays: arrays, *arrays)


def in_blocks(f: Callable, *, pairs: bool = False) -> Callable:
    """f(problem, *arrays), every leaf but those of `problem.op` led by groups; on CPUs a block of groups at a time.

    A block's arrays stay in the cache. Larger temporaries leave it and, past some 32 MB, are mapped anew by the system in every
    call. Loops of a block stop on their own, too. Accelerators get all groups at once. pairs: f makes matrices between neurons.
    """

    def call(problem, *rest):
        groups, n = problem.y.shape
        most = max(1, PAIRS // (n * problem.op.neighbours) if pairs else NEURONS // n)
        if groups <= most or jax.default_backend() != "cpu":
            return f(problem, *rest)
        count, size = _blocks(groups, most)

        def split(x):  # the last block is filled up with copies of the last group
            filled = jnp.pad(
                x, ((0, count * size - groups), *[(0, 0)] * (x.ndim - 1)), mode="edge"
            )
            return filled.reshape(count, size, *x.shape[1:])

        blocks = jax.tree.map(split, (problem.y, problem.lam, problem.p, rest))

        def cut(k):
            return jax.tree.map(
                lambda x: jax.lax.dynamic_index_in_dim(x, k, keepdims=False), blocks
            )

        # A branch always taken, so that a block has arrays of its own: XLA would otherwise cut it out anew in every operation
        # that reads it, which does not vectorise.
        def treat(k):
            y, lam, p, rest = jax.lax.cond(
                k < count,
                cut,
                lambda _: jax.tree.map(jnp.zeros_like, jax.eval_shape(cut, k)),
                k,
            )
            return f(Problem(y, lam, p, problem.op), *rest)

        out = jax.lax.map(treat, jnp.arange(count))
        return jax.tree.map(
            lambda x: x.reshape(count * size, *x.shape[2:])[:groups], out
        )

    return call


def _blocks(groups: int, most: int) -> tuple[int, int]:
    """(how many blocks of at most `most` groups hold them, the groups in each)."""
    count = -(-groups // most)
    return count, -(-groups // count)


def merge_vmap(f: Callable) -> Callable:
    """f(problem, *arrays), every leaf but those of `problem.op` led by groups, with a vmap that adds groups.

    Groups are independent, so a batch of problems is one problem with more of them: loops keep one counter, and no
    batched scatter or batched loop condition is left to XLA. A batched operator (a Dense w) is mapped as usual.
    """
    call = jax.custom_batching.custom_vmap(f)

    @call.def_vmap
    def rule(size, batched, problem, *rest):
        if any(jax.tree.leaves(batched[0].op)):
            axes = jax.tree.map(lambda b: 0 if b else None, batched)
            out = jax.vmap(f, in_axes=tuple(axes), axis_size=size)(problem, *rest)
            return out, jax.tree.map(lambda _: True, out)

        def merge(x, is_batched):
            x = x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        parts = (problem.y, problem.lam, problem.p, rest)
        flags = (batched[0].y, batched[0].lam, batched[0].p, tuple(batched[1:]))
        y, lam, p, rest = jax.tree.map(merge, parts, flags)
        out = call(Problem(y, lam, p, problem.op), *rest)
        out = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return call


@dataclass(frozen=True)
class Layout:
    """How to go from y with its own axes to groups [G, n] and back."""

    batch: tuple[int, ...]  # sizes of the uncoupled axes, in order
    event: tuple[int, ...]  # sizes of the coupled axes, in the coupling's order
    axes: tuple[int, ...]  # the coupled axes of y, non-negative

    def to_groups(self, y):
        y = jnp.moveaxis(y, self.axes, range(-len(self.axes), 0))
        return y.reshape(prod(self.batch), prod(self.event))

    def from_groups(self, z):
        z = z.reshape(*self.batch, *self.event)
        return jnp.moveaxis(z, range(-len(self.axes), 0), self.axes)

    def per_group(self, leaf):
        """[G, ...] -> [*batch, ...]."""
        return leaf.reshape(*self.batch, *leaf.shape[1:])


def default_tol(dtype) -> float:
    """1e-6 in float32, 1e-11 in float64."""
    return 1e-11 if jnp.dtype(dtype).itemsize == 8 else 1e-6


def bind(y, lam, p, coupling: Coupling) -> tuple[Problem, Layout]:
    """Check the arguments and lay them out as a Problem; half precision y is solved in float32.

    Raises:
        ValueError: y is not a floating array, has too few axes or an empty group; lam or p is not real, does not
            broadcast against y, varies along a coupled axis, or (when its value is known) p <= 0.
    """
    if not isinstance(coupling, Coupling):
        raise ValueError(
            f"coupling must be ibnn_jax.Uniform, Window or Dense; got {type(coupling).__name__}"
        )
    y = jnp.asarray(y)
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise ValueError(
            f"y must have a floating dtype; got {y.dtype}. Convert it, e.g. y.astype(jnp.float32)"
        )
    axes = coupling.coupled_axes(y.ndim)
    event = tuple(y.shape[a] for a in axes)
    if y.size == 0:
        raise ValueError(
            f"y of shape {y.shape} is empty: every coupled group needs at least one neuron, and y one group"
        )
    batch = tuple(s for a, s in enumerate(y.shape) if a not in axes)
    layout = Layout(batch, event, axes)
    op = coupling.bind(event)
    dtype = jnp.promote_types(y.dtype, jnp.float32)
    per_group = tuple(1 if a in axes else s for a, s in enumerate(y.shape))

    def spread(name, value):
        value = jnp.asarray(value)
        if not (
            jnp.issubdtype(value.dtype, jnp.floating)
            or jnp.issubdtype(value.dtype, jnp.integer)
        ):
            raise ValueError(f"{name} must be real; got dtype {value.dtype}")
        try:
            value = jnp.broadcast_to(value.astype(dtype), per_group)
        except ValueError:
            raise ValueError(
                f"{name} of shape {value.shape} must broadcast against y {y.shape} with size 1 on the coupled axes "
                f"{axes}: one value per group, i.e. against {per_group}"
            ) from None
        return value.reshape(-1, 1)

    if not isinstance(p, jax.core.Tracer) and (np.asarray(p) <= 0).any():
        raise ValueError(
            f"p must be positive (it is the slope of sigma at the origin); got {p}"
        )
    lam, p = spread("lam", lam), spread("p", p)
    return Problem(layout.to_groups(y.astype(dtype)), lam, p, op), layout
