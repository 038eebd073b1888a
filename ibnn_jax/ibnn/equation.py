"""The implicit-bias equation as a problem: z = y - lam B(z; p), group by group."""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ibnn_jax.core.batching import in_blocks, merge_vmap, replace_where
from ibnn_jax.core.problem import AbstractProblem, Linearisation
from ibnn_jax.ibnn.pairwise import Operator


SHARE = 1e-3  # of the range of y, which every tolerance is to resolve


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
class IBNNProblem(AbstractProblem):
    """r(z) = y - lam B(z; p) - z = -grad E(z) for G groups of n neurons (Eqs. 4, 5).

    Args:
        y: [G, n]. lam, p: [G, 1]. op: the sums over pairs of neurons.
    """

    y: Float[Array, "G n"]
    lam: Float[Array, "G 1"]
    p: Float[Array, "G 1"]
    op: Operator

    shared = ("op",)
    symmetric = True

    @property
    def weight(self):  # type: ignore[override]
        return self.op.weight

    def residual(self, z):
        return self.y - self.lam * self.op.bias(z, self.p) - z

    def energy(self, z) -> Float[Array, "G"]:
        """E(z) = 1/2 |z - y|^2 - lam/2 sum_ik w_ik S_p(z_k - z_i), [G] (Eq. 5)."""
        coupled = self.lam[:, 0] * self.op.potential(z, self.p)
        return 0.5 * ((z - self.y) ** 2).sum(-1) - coupled

    def linearise(self, z):
        """H = I + lam DB(z), the Hessian of E, DB = K - diag(d) (Eqs. 28, 31).

        The preconditioner inverts the dominant diagonal 1 - lam d. It is 1 where that
        is not safely positive, which happens only past the uniqueness bound.
        """
        d, kernel = self.op.linearised(z, self.p)
        diagonal = 1 - self.lam * d
        safe = jnp.where(diagonal > 1e-3, diagonal, 1)

        def matvec(v):
            return diagonal * v + self.lam * kernel(v)

        # H is symmetric, in the inner product by weight where points carry one.
        return Linearisation(matvec, matvec, 1 / safe, self.weight, symmetric=True)

    def start(self):
        """m + (y - m) / (1 - lam p) for lam <= 0, m the mean that a neuron sees; else
        y.

        The first is the solution of the linearised equation under uniform coupling;
        undamped Newton from it needs a handful of steps where it fails from y. It is
        shifted to the mean of y, which a solution has because w is symmetric
        (sum_i B_i = 0); steps along the residual keep it there. For lam > 0 solvers
        descend from y (|z - y| <= lam).
        """
        mean = self.op.average(self.y)
        shrunk = mean + (self.y - mean) / (1 - jnp.minimum(self.lam, 0) * self.p)
        weight = jnp.asarray(self.weight, shrunk.dtype)
        weight = jnp.broadcast_to(weight, shrunk.shape)
        moved = (weight * (self.y - shrunk)).sum(-1, keepdims=True)
        shrunk += moved / weight.sum(-1, keepdims=True)
        return jnp.where(self.lam <= 0, shrunk, self.y)

    def tolerance(self, tol: float, span: Span | None = None):
        """tol (1 + radius + min(|lam| R, range)), tol at least 4 eps.

        The range of y is max(y) - min(y), the radius half of it, R the largest row sum
        of w, so |lam| R bounds z - y. At most a thousandth of the range, within which
        nearly equal neurons have their whole solution. span: of y, if known.
        """
        tol = max(tol, 4 * float(jnp.finfo(self.y.dtype).eps))
        span = span or self.span()
        share = jnp.maximum(2 * SHARE * span.radius[:, 0], SHARE * tol)
        return jnp.minimum(tol * self._size(span), share)

    def _size(self, span: Span) -> Float[Array, "G"]:
        """1 + the radius of y + how far z may be from y."""
        reach = jnp.abs(self.lam) * jnp.asarray(self.op.row_sum, self.y.dtype)
        return (1 + span.radius + jnp.minimum(reach, 2 * span.radius))[:, 0]

    def resolves(self, lost, tol: float, span: Span | None = None):
        """Whether rounding z by `lost` changes the residual by no more than matters:
        by the tolerance, or a thousandth of the range of y where that is more.

        False where y has so large a common offset that the dtype cannot hold the
        differences beside it.
        """
        tol = max(tol, 4 * float(jnp.finfo(self.y.dtype).eps))
        span = span or self.span()
        rows = jnp.asarray(self.op.row_sum, self.y.dtype)
        steep = (1 + jnp.abs(self.lam) * self.p * rows)[:, 0]
        most = jnp.maximum(tol * self._size(span), 2 * SHARE * span.radius[:, 0])
        return steep * lost <= most

    def known_adjoint(self, v):
        """The mean of v: H 1 = 1, because DB does not see a common shift."""
        return jnp.broadcast_to(v.mean(-1, keepdims=True), v.shape)

    def cotangent(self, z, u):
        """u, -u . B and -lam u . dB/dp for y, lam and p; for w -lam u . dB/dw."""

        def sums(problem, z, u):
            one = jnp.ones_like(problem.p)
            bias, slope = jax.jvp(partial(problem.op.bias, z), (problem.p,), (one,))
            return [(u * f).sum(-1, keepdims=True) for f in (bias, slope)]

        in_groups = merge_vmap(in_blocks(sums, lambda problem: problem.largest_row))
        by_lam, by_p = in_groups(self, z, u)
        _, pull = jax.vjp(lambda op: op.bias(z, self.p), self.op)
        (by_op,) = pull(-self.lam * u)
        return IBNNProblem(u, -by_lam, -self.lam * by_p, by_op)

    def sanitised(self) -> tuple["IBNNProblem", Bool[Array, "G"]]:
        """Groups that hold NaN or infinity, or p <= 0, become y = 0, lam = 0, p = 1."""
        total = sum(jnp.abs(x) for x in (*self.span(), self.lam, self.p))
        valid = (jnp.isfinite(total) & (self.p > 0))[:, 0]
        y, lam, p = replace_where(~valid, (0, 0, 1), self.y, self.lam, self.p)
        return IBNNProblem(y, lam, p, self.op), valid

    def span(self) -> Span:
        """The range of y."""
        ends = self.y.min(-1, keepdims=True), self.y.max(-1, keepdims=True)
        bottom, top = jax.lax.stop_gradient(ends)
        # In halves, whose sum is finite; rounded, so it may lie nearer to one end.
        centre = 0.5 * bottom + 0.5 * top
        return Span(centre, jnp.maximum(top - centre, centre - bottom))

    def centred(
        self, span: Span | None = None
    ) -> tuple["IBNNProblem", Float[Array, "G 1"]]:
        """The equation knows differences only, and small numbers round less.

        Around the mean, about which a strong lam < 0 gathers z: the middle of the range
        lies far from that where there are outliers. span: of y, if known.
        """
        centre = (span or self.span()).centre
        mean = (self.y - centre).mean(-1, keepdims=True)
        centre += jax.lax.stop_gradient(mean)
        return replace(self, y=self.y - centre), centre

    @property
    def unique(self):
        """Where lam is below the uniqueness bound, [G]."""
        return (self.lam < self.op.bound(self.p)).squeeze(-1)

    def close(self, r):
        """Below the bound always; past it where p max|r| < 0.01."""
        return self.unique | (jnp.abs(r).max(-1) * self.p.squeeze(-1) < 0.01)

    def step_sizes(self, z):
        """a_i = 1 / (1 + f max(-lam, 0) c_i), c_i = sum_k w_ik sigma(p t_ik) / t_ik.

        Here t_ik = z_k - z_i. S(t) lies below the parabola that touches it at t_ik,
        whose curvature is sigma(t_ik) / t_ik (sigma is concave on t > 0). So for
        lam <= 0 the energy lies below a quadratic form with the Hessian
        I + |lam| (diag(c) - C), which is at most diag(1 / a): f = 1 where C is
        positive semidefinite, as -DB is (`uniqueness_bound`; tanh(t) / t is a positive
        definite function as well), and f = 2 otherwise. For lam > 0, a = 1 does: E is
        a convex quadratic form minus a convex function. The effect of the step sizes
        vanishes with the residual, so they count as constants in differentiation.
        """
        sigma = self.op.sigma
        factor = 1 if self.op.psd and sigma.positive_definite else 2

        def secant(t, p):
            at_zero = t == 0
            t = jnp.where(at_zero, 1, t)
            return jnp.where(at_zero, p, sigma.value(p * t) / t)

        c = self.op.pair_sum(secant, z, self.p)
        a = 1 / (1 + factor * jnp.maximum(-self.lam, 0) * c)
        return jax.lax.stop_gradient(a)

    def precondition(self, a, r):
        """P r = a (r - sum(a r) / sum(a)) + mean(r), P symmetric.

        The first part minimises the quadratic bound of E among steps that keep the
        mean of z, the second moves the mean to that of y, where it stays:
        sum_i B_i = 0, and B does not change when all z_i are moved alike.
        """
        level = (a * r).sum(-1, keepdims=True) / a.sum(-1, keepdims=True)
        return a * (r - level) + r.mean(-1, keepdims=True)

    @property
    def shortest_step(self):
        """1 / L, L = 1 - min(lam, 0) / bound, since 0 <= -DB(z) <= 1 / bound."""
        curvature = 1 - jnp.minimum(self.lam, 0) / self.op.bound(self.p)
        return (1 / curvature).astype(self.y.dtype)  # the bound has the dtype of w

    @property
    def largest_row(self):
        """The pairs of neurons."""
        return self.y.shape[1] * self.op.neighbours
