"""What a solver may ask of an equation; no solver knows more about it."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float


@dataclass(frozen=True)
class Linearisation:
    """The linear map H = -Dr(z) of every group.

    Args:
        matvec: v -> H v, on [G, n].
        transpose: v -> H^T v.
        inverse_diagonal: an approximation of 1 / diag(H), positive; preconditions.
        weight: H is symmetric in the inner product sum_i weight_i a_i b_i, if at all.
        symmetric: whether it is.
    """

    matvec: Callable[[Array], Array]
    transpose: Callable[[Array], Array]
    inverse_diagonal: Float[Array, "G n"]
    weight: Float[Array, "G n"] | float = 1.0
    symmetric: bool = False

    @property
    def transposed(self) -> "Linearisation":
        """The same of H^T."""
        return dataclasses.replace(self, matvec=self.transpose, transpose=self.matvec)


class AbstractProblem(ABC):
    """G independent systems r(z) = 0 of n unknowns each, z [G, n].

    A subclass is a frozen dataclass registered as a pytree. Every leaf is led by the
    G groups, except those of the fields named in `shared`, which all groups use. A
    field with metadata {"static": True} is no leaf.
    `residual` and `start` are enough; the other methods have defaults that suit a
    contraction z -> z + r(z). They say, in this order: when a group counts as solved;
    how to treat what rounding or bad inputs would spoil; what is known of uniqueness;
    H = -Dr for Newton and the adjoint; the safe step of the other solvers; and how
    the groups can be taken apart.

    Example, z = tanh(A z + u) with one small matrix A for all groups:

        @partial(jax.tree_util.register_dataclass,
                 data_fields=["u", "a"], meta_fields=[])
        @dataclass(frozen=True)
        class Tanh(AbstractProblem):
            u: Array  # [G, n]
            a: Array  # [n, n]
            shared = ("a",)

            def residual(self, z):
                return jnp.tanh(z @ self.a.T + self.u) - z

            def start(self):
                return jnp.zeros_like(self.u)

        solution = ibnn_jax.core.solve(Tanh(u, a), ibnn_jax.Anderson())
    """

    shared: ClassVar[tuple[str, ...]] = ()
    symmetric: ClassVar[bool] = False  # -Dr is symmetric: r = -grad E of an energy E
    weight: Any = 1.0  # of the inner product sum_i weight_i a_i b_i, [G, n] or 1

    @abstractmethod
    def residual(self, z: Float[Array, "G n"]) -> Float[Array, "G n"]:
        """r(z), with the sign that makes z + r(z) the plain fixed-point step."""

    @abstractmethod
    def start(self) -> Float[Array, "G n"]:
        """Where a solver starts when it is not told."""

    def tolerance(self, tol: float) -> Float[Array, "G"]:
        """The largest max_i |r_i| that counts as converged: tol (1 + max|start|)."""
        start = self.start()
        tol = max(tol, 4 * float(jnp.finfo(start.dtype).eps))
        return tol * (1 + jnp.abs(start).max(-1))

    def rounding(self, z: Float[Array, "G n"]) -> Float[Array, "G"] | float:
        """How large max_i |r_i| may be at a solution z for rounding alone.

        A residual within it counts as converged, whatever the tolerance.
        """
        return 0.0

    def size(self, r: Float[Array, "G n"]) -> Float[Array, "G"]:
        """A norm of r that the safe step brings down, to judge other steps by."""
        return jnp.abs(r).max(-1)

    def sanitised(self) -> tuple[Self, Bool[Array, "G"]]:
        """(this problem with harmless numbers in place of groups that hold NaN or
        infinity, which groups hold neither)."""
        start = self.start()
        valid = jnp.isfinite(start).all(-1) & jnp.isfinite(self.residual(start)).all(-1)
        grouped, join = self.parts()
        return join(jax.tree.map(partial(_zero_unless, valid), grouped)), valid

    def centred(self) -> tuple[Self, Float[Array, "G 1"]]:
        """(an equal problem around 0, what to add to its solution, a constant)."""
        return self, jnp.zeros_like(self.start()[:, :1])

    def resolves(self, lost: Float[Array, "G"], tol: float) -> Bool[Array, "G"]:
        """Whether a z whose entries are rounded by `lost` still is the solution."""
        return lost <= self.tolerance(tol)

    @property
    def unique(self) -> Bool[Array, "G"]:
        """Whether r(z) = 0 is known to have exactly one solution.

        Where it is not, every solver follows the safe step from the start, so that
        all of them reach the same solution.
        """
        return jnp.ones_like(self.start()[:, 0], dtype=bool)

    def close(self, r: Float[Array, "G n"]) -> Bool[Array, "G"]:
        """Whether Newton steps may be taken here, [G].

        Always where the solution is unique; elsewhere only near a solution, so that
        Newton finishes what the safe steps began.
        """
        return self.unique

    def linearise(self, z: Float[Array, "G n"]) -> Linearisation:
        """H = -Dr at z."""
        _, forward = jax.linearize(self.residual, z)
        backward = jax.linear_transpose(forward, z)
        return Linearisation(
            lambda v: -forward(v),
            lambda v: -backward(v)[0],
            jnp.ones_like(z),
            symmetric=self.symmetric,
        )

    def known_adjoint(self, v: Float[Array, "G n"]) -> Float[Array, "G n"]:
        """A part of v that H^T maps to itself, so that only the rest is solved for."""
        return jnp.zeros_like(v)

    def cotangent(self, z: Float[Array, "G n"], u: Float[Array, "G n"]) -> Self:
        """u . dr/dtheta for every leaf theta of the problem, in its own form.

        z: a solution of the problem that `centred` returns.
        """
        # Computed again in the backward pass rather than stored: r may go through an
        # array of `largest_row` numbers per group.
        residual = jax.checkpoint(lambda problem: problem.centred()[0].residual(z))
        return jax.vjp(residual, self)[1](u)[0]

    def step_sizes(self, z: Float[Array, "G n"]) -> Float[Array, "G n"]:
        """Sizes a for `precondition` at z, constants to differentiation."""
        return jnp.ones_like(z)

    def precondition(
        self, a: Float[Array, "G n"], r: Float[Array, "G n"]
    ) -> Float[Array, "G n"]:
        """The safe step for the residual r: repeating it converges from anywhere.

        Linear and symmetric in r for fixed a.
        """
        return a * r

    @property
    def shortest_step(self) -> Float[Array, "G 1"]:
        """A step along r that is never too long; `GradientDescent` starts from it."""
        return jnp.ones_like(self.start()[:, :1])

    @property
    def largest_row(self) -> int:
        """How many numbers per group the largest array of a solver's step has."""
        return self.start().shape[-1]

    def parts(self) -> tuple[dict, Callable[[dict], Self]]:
        """(the fields led by groups, how to put this problem together from others)."""
        fields = dataclasses.fields(self)  # type: ignore
        names = [f.name for f in fields if not f.metadata.get("static")]
        grouped = {n: getattr(self, n) for n in names if n not in self.shared}
        return grouped, lambda parts: dataclasses.replace(self, **parts)  # type: ignore


def _zero_unless(mask: Bool[Array, "G"], x: Array) -> Array:
    return jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x))
