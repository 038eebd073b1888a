"""The mean-field solver for uniform coupling: O(n) plus a small problem of fixed size, instead of O(n^2) per step.

Under w = 1/n every neuron of a group sees the same function of its own state,

    z_i = y_i - lam G(z_i),    G(t) = 1/n sum_k sigma(p (z_k - t)),

so z_i = T(y_i) for one increasing function T. The n neurons are replaced by a few weighted points (`ibnn_jax.cells`), the
same equation is solved exactly for these, and B(y) = G(T(y)) is read off at the neurons: z_i = y_i - lam B(y_i). At the
points two derivatives of T are known, T' = 1 / Y' and T'' = -Y'' / Y'^3 with Y(t) = t + lam G(t), so the
interpolation is of sixth order.

The adjoint (I + lam DB) u = v reduces in the same way: with K(t) = p sigma'(p t) and s_i = T'(y_i),

    u_i = s_i (v_i - lam H(z_i)),    H(t) = b(t) - lam sum_l w_l K(z_l - t) x_l,    b(t) = 1/n sum_k s_k v_k K(z_k - t),

where x solves the adjoint system of the points for the right-hand side b.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from ibnn_jax.adjoint import Implicit, solve_adjoint_groups
from ibnn_jax.cells import Cells, Place, Quadrature
from ibnn_jax.couplings import Operator, PointsOperator, UniformOperator
from ibnn_jax.iterate import Run, collapsed_start, package, run, run_where, select
from ibnn_jax.kernels import per_group
from ibnn_jax.linear import conjugate_gradient
from ibnn_jax.problem import Problem, Span
from ibnn_jax.sigmas import Sigma, tanh
from ibnn_jax.solution import Solution
from ibnn_jax.solvers.newton import Newton

LINEAR_TOL = 0.05  # of Newton's inner solves: the starts are good, and the tolerance is not tight
FLAT = 1e-2  # least slope Y' that is believed; below the uniqueness bound it is at least 1 - lam p


class Points(NamedTuple):
    """The solved points of a problem, and at its nodes what interpolation needs."""

    cells: Cells
    quadrature: Quadrature
    z: Float[Array, "G 2m+2"]
    g: Float[Array, "G m+1"]  # G and its first two derivatives at the nodes, then Y' and Y'' there
    g1: Float[Array, "G m+1"]
    g2: Float[Array, "G m+1"]
    y1: Float[Array, "G m+1"]
    y2: Float[Array, "G m+1"]

    @property
    def at_nodes(self):
        """z at the nodes."""
        return self.quadrature.at_nodes(self.z)

    @property
    def inner(self):
        """z at the inner points."""
        return self.quadrature.inside(self.z)

    def bias(self):
        """B and its first two derivatives in y, at the nodes."""
        return self.in_y(self.g, self.g1, self.g2)

    def in_y(self, f, f1, f2):
        """f and its first two derivatives in y, at the nodes, from those in z."""
        t1 = 1 / self.y1
        first, second = f1 * t1, (f2 - f1 * self.y2 * t1) * t1**2
        # Past the uniqueness bound T jumps: its derivatives say nothing there, differences do.
        jump = self.y1 <= FLAT
        across = jnp.gradient(f, axis=-1) / self.cells.step
        return f, jnp.where(jump, across, first), jnp.where(jump, 0, second)


class Kept(NamedTuple):
    """What the adjoint needs of a solution."""

    found: "Found"
    points: Points  # of the first attempt
    later: list[Float[Array, "G 2m+2"]]  # z at the points of the others, in the groups that needed them only
    attempt: Int[Array, "G"]  # the one that met the tolerance; their number where none did: the adjoint is solved pairwise


@dataclass(frozen=True)
class MeanField:
    """Newton on 2 * cells + 2 points that stand for a group's neurons, for Uniform couplings; see the module.

    The reported residual is that of the points plus the estimated errors of the quadrature and of the interpolation, so
    it speaks of the equation of the neurons. Groups whose estimate exceeds the tolerance (inputs spread over many widths
    1/p, or T steep next to the uniqueness bound) are solved again with more cells, and those that miss it every time
    are finished by pairwise Newton, at O(n^2) per step: always for these groups only.

    Args:
        cells: m of every attempt, increasing; the error falls as m^-4 once p * (range of y) / m < 1. None takes (19, 63, 511)
            on CPUs, and elsewhere (63, 511): there an attempt more costs more than points. Attempts with as many points as
            neurons are left out, so 511 serves groups of more than 1024; each one costs a second or two of compilation.
            On CPUs (31, 63, 511) takes less time where lam stays next to its bound, and 60% more where it is negative.
        default_tol: the tolerance when `solve` gets none.
        polish: largest n for the pairwise finish; larger groups that miss the tolerance are reported as MAX_STEPS.
        kernels: on NVIDIA GPUs, solve a group's points in one Pallas kernel where there are 16 to 128 of them (7, 15, 31 or
            63 cells) and sigma is tanh; False leaves them to XLA, as on other devices.

    Raises:
        ValueError: cells empty, not increasing, or less than 4.
    """

    cells: tuple[int, ...] | None = None
    default_tol: float = 1e-4
    polish: int = 20_000
    kernels: bool = True

    def __post_init__(self):
        cells = self._attempts()
        if not cells or list(cells) != sorted(set(cells)) or cells[0] < 4:
            raise ValueError(f"MeanField: cells must be increasing numbers, the first at least 4; got {self.cells}")

    def _attempts(self) -> tuple[int, ...]:
        if self.cells is None:
            return (19, 63, 511) if jax.default_backend() == "cpu" else (63, 511)
        return self.cells

    @staticmethod
    def fits(op: Operator) -> bool:
        """Whether the coupling is uniform and sigma smooth."""
        return isinstance(op, UniformOperator) and op.sigma.smooth

    def _on_points(self, op: Operator):
        """How to apply a function to the points of every group: `per_group`, or as it is."""
        return per_group if self.kernels and op.sigma == tanh else lambda f, *arrays: f(*arrays)

    def solve(self, problem: Problem, tol: float, max_steps: int) -> tuple[Solution, Kept]:
        """The Solution on groups, and what `pullback` needs of it."""
        problem, valid, span = _prepared(problem)
        threshold = problem.tolerance(tol, span)
        on_points = self._on_points(problem.op)

        def retry(count):
            def again(state, problem, span, first):
                found, points = _attempt(problem, span, count, on_points, tol, max_steps, first)
                return found._replace(steps=state[0].steps + found.steps), points.z

            return again

        def pairwise(found, problem, threshold):
            problem, _ = problem.centred()
            # Past the bound the solution that descent reaches from y is meant, not the one next to the interpolated z.
            start = select(problem.unique, problem.y - problem.lam * found.bias, problem.y)
            z, residual, steps, _ = run(Newton(linear_tol=LINEAR_TOL), problem, start, threshold, max_steps)
            bias = _bias_of(problem, problem.y - z, problem.op.bias(z, problem.p))
            return Found(bias, found.slope, residual, found.steps + steps)

        def missed(found):
            return valid & ~(found.residual <= threshold)

        def finish(found, later, attempt):
            solved = []
            for count, z in zip(counts, later):
                again = retry(count)
                found, z = run_where(missed(found), again, (found, z), problem, span, points, chunk=_chunk(count))
                solved.append(z)
                attempt += missed(found)
            if problem.y.shape[1] <= self.polish:
                found = run_where(missed(found), pairwise, found, problem, threshold)
            return found, solved, attempt

        first, *others = self._attempts()
        found, points = _attempt(problem, span, first, on_points, tol, max_steps)
        counts = [count for count in others if 2 * count + 2 < problem.y.shape[1]]
        later = [jnp.zeros((len(found.bias), 2 * count + 2), found.bias.dtype) for count in counts]
        state = found, later, missed(found).astype(jnp.int32)
        if counts or problem.y.shape[1] <= self.polish:
            state = jax.lax.cond(missed(found).any(), finish, lambda *state: state, *state)
        found, later, attempt = state
        z = problem.y - problem.lam * found.bias
        solution = package(problem, valid, z, found.residual, found.residual <= threshold, found.steps)
        return solution, Kept(found, points, later, attempt)

    def pullback(self, problem: Problem, kept: Kept, v, options: Implicit) -> Problem:
        """The cotangents of y, lam and p, in the form of a Problem, for the cotangent v of z."""
        problem, valid, span = _prepared(problem)
        valid &= jnp.isfinite(kept.found.residual)
        later = [(valid & (kept.attempt == k), z_points) for k, z_points in enumerate(kept.later, start=1)]

        def points_again(problem, span, z):
            return _points(problem, *_stand_ins(problem, span, _count(z)), z)

        def reduced(_, problem, span, found, z, v):
            return _solve_adjoint(problem, span, found, points_again(problem, span, z), on_points, v, options)

        def pairwise(_, problem, bias, v):
            as_exact = replace(options, tol=1e-4) if options.tol is None else options  # as exact as z is
            return solve_adjoint_groups(problem, problem.y - problem.lam * bias, v, as_exact).value

        def not_solved(ok):
            return valid & ((kept.attempt > len(kept.later)) | ~ok)

        def finish(u, ok):
            for mask, z in later:
                u, ok = run_where(mask, reduced, (u, ok), problem, span, kept.found, z, v, chunk=_chunk(_count(z)))
            return run_where(not_solved(ok), pairwise, u, problem, kept.found.bias, v) if small else u, ok

        small = v.shape[1] <= self.polish
        on_points = self._on_points(problem.op)
        u, ok = _solve_adjoint(problem, span, kept.found, kept.points, on_points, v, options)
        if later or small:
            u, ok = jax.lax.cond(((kept.attempt > 0) | ~ok).any(), finish, lambda u, ok: (u, ok), u, ok)
        exact = not_solved(ok)
        if not small and options.give_up < 1:
            valid &= ~exact  # too large for the pairwise solve: lost, and said so
        # On its own, so that XLA leaves it out where no gradient of p is asked for.
        by_p = _bias_by_p(problem, span, kept.points)
        for mask, z in later:
            again = lambda _, problem, span, z: _bias_by_p(problem, span, points_again(problem, span, z))
            by_p = run_where(mask, again, by_p, problem, span, z)
        if small:
            def along_p(_, problem, bias):
                slope, z = problem.op.sigma.derivative, problem.y - problem.lam * bias
                return problem.op.pair_sum(lambda t, p: slope(p * t, t), z, problem.p)

            by_p = run_where(exact, along_p, by_p, problem, kept.found.bias)
        total = lambda f: -(u * f).sum(-1, keepdims=True)
        gradient = Problem(u, total(kept.found.bias), problem.lam * total(by_p), problem.op)
        return jax.tree.map(lambda g: jnp.where(valid[:, None], g, jnp.nan), gradient)


def _prepared(problem: Problem):
    """(the problem sanitised, which groups were finite, the range of y in them and 0 elsewhere)."""
    span = problem.span()
    problem, valid = problem.sanitised()
    return problem, valid, select(valid, span, jax.tree.map(jnp.zeros_like, span))


def _count(z_points: Array) -> int:
    """Of the cells that have so many points."""
    return z_points.shape[1] // 2 - 1


def _chunk(count: int) -> int:
    """Groups solved together in a later attempt: few enough for their matrices to stay in a CPU's cache."""
    budget = 600_000 if jax.default_backend() == "cpu" else 30_000_000
    return max(1, budget // (2 * count + 2) ** 2)


class Found(NamedTuple):
    """An attempt's outcome per group."""

    bias: Float[Array, "G n"]
    slope: Float[Array, "G n"]
    residual: Float[Array, "G"]
    steps: Array


def _attempt(problem: Problem, span: Span, count: int, on_points, tol: float, max_steps: int, coarser: Points | None = None):
    """Solve with `count` cells, from the solution with fewer: Found, Points."""
    cells, quadrature = _stand_ins(problem, span, count)
    points, found = _solve_points(problem, cells, quadrature, on_points, 0.25 * tol, max_steps, coarser)
    place = _neurons(problem, span, cells)
    bias = place.interpolate(*points.bias())
    slope = 1 - problem.lam * place.interpolate(*points.bias(), slope=True)
    return Found(bias, slope, found.residual + _error(problem, points), found.steps), points


def _stand_ins(problem: Problem, span: Span, count: int) -> tuple[Cells, Quadrature]:
    """The cells of the neurons, and the points that stand for them."""
    cells = Cells.spanning(span.radius, count)
    return cells, _neurons(problem, span, cells).quadrature(1 / problem.y.shape[1])


def _neurons(problem: Problem, span: Span, cells: Cells) -> Place:
    """The neurons in the cells, which lie around 0: nothing as large as the shared part of y is subtracted from its like."""
    return cells.locate(problem.y - span.centre)


def _solve_points(problem, cells, quadrature, on_points, tol, max_steps, coarser=None) -> tuple[Points, Run]:
    """Newton on the points, from the collapsed start or from the solution on coarser cells."""
    lam = problem.lam

    def newton(y, lam, p, weights, threshold, *start):
        small = Problem(y, lam, p, PointsOperator(y.shape[1:], problem.op.sigma, weights))
        start = start[0] if start else collapsed_start(small)
        return run(Newton(linear_tol=LINEAR_TOL), small, start, threshold, max_steps)

    start = []
    if coarser is not None:
        y = quadrature.points
        guess = y - lam * coarser.cells.locate(y).interpolate(*coarser.bias())
        start = [jnp.where(problem.unique[:, None] & jnp.isfinite(guess), guess, y)]
    radius = -cells.nodes[:, :1]
    threshold = problem.tolerance(tol, Span(jnp.zeros_like(radius), radius))
    found = on_points(newton, quadrature.points, lam, problem.p, quadrature.weights, threshold, *start)
    return _points(problem, cells, quadrature, found.z), found


def _points(problem: Problem, cells: Cells, quadrature: Quadrature, z) -> Points:
    """What follows from z at the points."""
    lam, p = problem.lam, problem.p
    t = quadrature.at_nodes(z)
    g, g1, g2 = _sums(problem, z, t, quadrature.weights, (0, 1, 2))
    g = _bias_of(problem, cells.nodes - t, g)
    g1, g2 = -p * g1, p * p * g2
    return Points(cells, quadrature, z, g, g1, g2, jnp.maximum(1 + lam * g1, FLAT), lam * g2)


def _bias_of(problem: Problem, shift, bias):
    """B from lam B = y - z, the shift: at large lam z = y - lam B then gives z back, where B(z) would add lam times its error."""
    lam = problem.lam
    return jnp.where(jnp.abs(lam) * problem.p > 0.1, shift / jnp.where(lam == 0, 1, lam), bias)


def _error(problem: Problem, points: Points) -> Float[Array, "G"]:
    """The estimated residual of the neurons: what the quadrature, the interpolation and rounding leave out.

    The quadrature of g(y) = sigma(p (T(y) - t)) errs by its defect times g'''' / 24, of which the leading term is
    taken; the interpolation is compared with the solution at the inner points.
    """
    lam, p, quadrature, y1 = problem.lam, problem.p, points.quadrature, points.y1
    steep = p / jnp.minimum(y1[:, 1:], y1[:, :-1])
    difference = points.inner[:, None, :] - points.at_nodes[:, :, None]
    fourth = jnp.abs(problem.op.sigma.differentiated(4)(p[:, :, None] * difference))
    quadrature_error = jnp.einsum("gtc,gc->gt", fourth, quadrature.defect * steep**4).max(-1) / 12
    cell = jnp.broadcast_to(jnp.arange(points.cells.count), points.inner.shape)
    place = Place(cell, quadrature.inner, points.cells)
    predicted = quadrature.inside(quadrature.points) - lam * place.interpolate(*points.bias())
    gap = jnp.abs(predicted - points.inner) * jnp.maximum(y1[:, 1:], y1[:, :-1])
    interpolation_error = jnp.where(quadrature.inside(quadrature.weights) > 0, gap, 0).max(-1)
    rounding = 8 * jnp.finfo(p.dtype).eps * ((1 + jnp.abs(lam) * p) * jnp.abs(points.cells.nodes)).max(-1)
    return jnp.abs(lam[:, 0]) * quadrature_error + interpolation_error + rounding


def _solve_adjoint(problem: Problem, span: Span, found: Found, points: Points, on_points, v, options: Implicit):
    """u at the neurons, through the points, and the groups in which the system of the points was solved."""
    lam, p = problem.lam, problem.p
    z, sigma, weight = points.z, problem.op.sigma, points.quadrature.weights
    place = _neurons(problem, span, points.cells)
    # b is the sum of charges and dipoles at the nodes; the kernel is even, its derivative odd.
    charge, dipole = place.spread(found.slope * v / v.shape[1])
    dipole = p * dipole / points.y1
    kernels = _kernels(problem, z, points.at_nodes, (1, 2, 3, 4))
    at_points = lambda kernel, f: jnp.einsum("gtl,gt->gl", kernel, f)
    b = p * (at_points(kernels[0], charge) - at_points(kernels[1], dipole))
    size = jnp.abs(b).max(-1)

    def conjugate(z, lam, p, weights, b, size):
        matrix, inverse_diagonal = Problem(z, lam, p, PointsOperator(z.shape[1:], sigma, weights)).hessian(z)
        return conjugate_gradient(
            matrix, b, inverse_diagonal, tol=(1e-3 if options.tol is None else options.tol) * size,
            max_steps=options.max_steps, active=size < jnp.inf, weight=weights,  # finite: NaN is not less
        )

    inner = on_points(conjugate, z, lam, p, weight, b, size)
    rest = ((0, 0), (0, z.shape[1] - charge.shape[1]))
    charge, dipole = jnp.pad(charge, rest) - lam * weight * inner.x, jnp.pad(dipole, rest)
    at_nodes = lambda k: jnp.einsum("gtl,gl->gt", kernels[k], charge) + jnp.einsum("gtl,gl->gt", kernels[k + 1], dipole)
    h = points.in_y(p * at_nodes(0), -p * p * at_nodes(1), p**3 * at_nodes(2))
    u = found.slope * (v - lam * place.interpolate(*h))
    return u, inner.ok | ~jnp.isfinite(size)  # a v that is not finite makes u so, which the pairwise solve cannot mend


def _bias_by_p(problem: Problem, span: Span, points: Points) -> Float[Array, "G n"]:
    """dB_i / dp = 1/n sum_k (z_k - z_i) sigma'(p (z_k - z_i)) at the neurons."""
    sigma, p = problem.op.sigma, problem.p
    moment = Sigma(lambda x: x * sigma.derivative(x), sigma.primitive)
    alike = Problem(problem.y, problem.lam, p, UniformOperator((), moment))
    f, f1, f2 = _sums(alike, points.z, points.at_nodes, points.quadrature.weights, (0, 1, 2))
    return _neurons(problem, span, points.cells).interpolate(*points.in_y(f, -p * f1, p * p * f2)) / p


def _sums(problem: Problem, z, t, v, orders) -> list[Array]:
    """sum_l v_l sigma^(k)(p (z_l - t_j)) for each order k, [G, targets]."""
    return [jnp.einsum("gtl,gl->gt", kernel, v) for kernel in _kernels(problem, z, t, orders)]


def _kernels(problem: Problem, z, t, orders) -> list[Array]:
    """sigma^(k)(p (z_l - t_j)) for each order k, [G, targets, sources]."""
    x = problem.p[:, :, None] * (z[:, None, :] - t[:, :, None])
    return [problem.op.sigma.differentiated(k)(x) for k in orders]
