"""The mean-field solver for uniform coupling: O(n + m log m) per step instead of O(n^2).

Under w = 1/n every neuron of a group sees the same function of its own state,

    z_i = y_i - lam G(z_i),    G(t) = 1/n sum_k sigma(p (z_k - t)),

and G is smooth on the scale 1/p. It is therefore kept as a cubic Hermite interpolant on m equally spaced nodes t_j
that span the group's z. The sum over neurons becomes a sum over nodes with the transposed interpolation weights,

    sum_k g(z_k) = sum_j rho_j g(t_j) + mu_j g'(t_j)    for every smooth g, to O(h^4),

which gives G and its slope at the nodes. Newton's correction solves (I + lam DB) delta = r through the same nodes:
with s_i = 1 / (1 - lam d(z_i)), d = -G', and H = K delta, a function of t as well,

    delta_i = s_i (r_i - lam H(z_i)),    (I + lam K diag(rho_s)) H = K (spread of s r),

a system of m unknowns; the adjoint reduces in the same way. Only the Newton matrix is approximate, the residual
is not, so the iteration is corrected by itself down to the error of the interpolant, which is estimated for free
by predicting every second node from its neighbours.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from ibnn_jax.adjoint import Implicit, solve_adjoint_groups
from ibnn_jax.couplings import Operator, UniformOperator
from ibnn_jax.iterate import Solver, collapsed_start, iterate, package, run, run_if, select
from ibnn_jax.linear import conjugate_gradient
from ibnn_jax.nodes import Grid, NodeOperator, Place
from ibnn_jax.problem import Problem
from ibnn_jax.solution import Solution
from ibnn_jax.solvers.newton import Newton


class Field(NamedTuple):
    """A function of a neuron's state, tabulated with its slope on the nodes that span z."""

    place: Place
    value: Float[Array, "G m"]
    slope: Float[Array, "G m"]

    def at_neurons(self):
        """(f(z_i), f'(z_i)), each [G, n]."""
        return self.place.hermite(self.value, self.slope)


class State(NamedTuple):
    z: Float[Array, "G n"]
    r: Float[Array, "G n"]
    diagonal: Float[Array, "G n"]  # 1 - lam d(z_i)
    field: Field  # G
    stalled: Bool[Array, "G"]  # Newton through the nodes no longer halves the residual


class Kept(NamedTuple):
    """What the adjoint needs of a solution."""

    field: Field
    diagonal: Float[Array, "G n"]
    exact: Bool[Array, "G"]  # groups whose nodes were too coarse: their adjoint is solved pairwise


@dataclass(frozen=True)
class MeanField(Solver):
    """Newton through m nodes per group, for Uniform couplings; see the module's equations.

    The reported residual is max|r| with the interpolated G, plus the estimated error of that interpolation. Groups
    whose estimate exceeds the tolerance (inputs spread over many widths 1/p, for which m nodes are too few) are
    finished by pairwise Newton, at O(n^2) per step and only when there are any, so a converged group meets the
    tolerance in the true equation. Past the uniqueness bound each step is the Picard step (descent of the energy).

    Args:
        nodes: m, even; a power of two suits the FFT. The error falls as m^-4 once p * (range of z) / m < 1.
        coarse: nodes of the first guess, in y, by linear spreading.
        default_tol: the tolerance when `solve` gets none: small enough that z stays within 1e-3 of exact.
            `solve(..., tol=2e-7, solver=MeanField(nodes=512))` is within 1e-5 of the exact solution.
        polish: largest n for the pairwise finish; larger groups that miss the tolerance are reported as MAX_STEPS.

    Raises:
        ValueError: nodes odd or < 8, coarse < 4.
    """

    nodes: int = 128
    coarse: int = 16
    default_tol: float = 2e-5
    polish: int = 20_000

    def __post_init__(self):
        if self.nodes < 8 or self.nodes % 2:
            raise ValueError(f"MeanField: nodes must be even and at least 8; got {self.nodes}")
        if self.coarse < 4:
            raise ValueError(f"MeanField: coarse must be at least 4; got {self.coarse}")

    @staticmethod
    def fits(op: Operator) -> bool:
        """Whether the coupling is uniform and sigma smooth."""
        return isinstance(op, UniformOperator) and op.sigma.smooth

    def init(self, problem, z):
        field = _tabulate(problem, Grid.spanning(z, self.nodes).locate(z), jnp.ones_like(z), problem.op.sigma.value)
        g, slope = field.at_neurons()
        stalled = jnp.zeros(len(z), bool)
        return State(z, problem.y - problem.lam * g - z, 1 + problem.lam * slope, field, stalled)

    def step(self, problem, state, active, unrolled):
        newton = problem.unique
        delta = _solve_linear(problem, state.field.place, state.diagonal, state.r, active & newton)
        new = self.init(problem, state.z + select(newton, delta, state.r))
        before, after = (jnp.abs(s.r).max(-1) for s in (state, new))
        # Where the nodes are too coarse for the Newton matrix the iteration gains nothing more: leave it to the finish.
        new = select(~newton | (after < before), new, state)
        return new._replace(stalled=newton & ~(after < 0.5 * before))

    def stalled(self, state):
        return state.stalled

    def guess(self, problem: Problem) -> Float[Array, "G n"]:
        """T(y) on a few nodes in y, where z_i = T(y_i) with T increasing; y itself past the uniqueness bound."""
        place = Grid.spanning(problem.y, self.coarse).locate(problem.y)
        mass = jnp.maximum(place.spread_linear(jnp.ones_like(problem.y))[0] / problem.y.shape[1], 1e-6)
        op = NodeOperator((self.coarse,), problem.op.sigma, mass)
        unique = problem.unique
        nodes = Problem(place.grid.nodes, jnp.where(unique[:, None], problem.lam, 0), problem.p, op)
        t = run(Newton(linear_tol=0.1), nodes, tol=2e-3, max_steps=12)[1].z
        slope = 1 / (1 - nodes.lam * op.kernel(t, problem.p))
        guess = place.hermite(t, slope)[0]
        return select(unique & jnp.isfinite(guess).all(-1), guess, collapsed_start(problem))

    def solve(self, problem: Problem, tol: float, max_steps: int) -> tuple[Solution, Kept]:
        """The Solution on groups, and what `pullback` needs of it."""
        problem, valid = problem.sanitised()
        threshold = problem.tolerance(tol)
        solution, state = run(self, problem, self.guess(problem), tol=0.5 * tol, max_steps=max_steps)
        residual = jnp.abs(state.r).max(-1) + self.error(problem, state.field)
        coarse = valid & ~(residual <= threshold)

        def pairwise(carry, problem, coarse):
            z, residual, steps = carry
            found = iterate(Newton(), problem, z, tol=tol, max_steps=max_steps, where=coarse)
            return select(coarse, (found.value, found.stats.residual, steps + found.stats.steps), carry)

        carry = (state.z, residual, solution.stats.steps)
        if problem.y.shape[1] <= self.polish:
            carry = run_if(coarse.any(), pairwise, carry, problem, coarse)
        z, residual, steps = carry
        solution = package(problem, valid, z, residual, residual <= threshold, steps)
        return solution, Kept(state.field, state.diagonal, coarse)

    def error(self, problem: Problem, field: Field) -> Float[Array, "G"]:
        """The estimated error of lam G between the nodes: every second node predicted from its two neighbours.

        Twice the step has 16 times the error of a resolved interpolant; 1/4 is kept for the spreading and for what
        is not resolved.
        """
        g, slope, h = field.value, field.slope, 2 * field.place.grid.step
        predicted = 0.5 * (g[:, :-2:2] + g[:, 2::2]) + h / 8 * (slope[:, :-2:2] - slope[:, 2::2])
        return 0.25 * jnp.abs(problem.lam[:, 0]) * jnp.abs(predicted - g[:, 1:-1:2]).max(-1)

    def pullback(self, problem: Problem, kept: Kept, z, v, options: Implicit) -> Problem:
        """The cotangents of y, lam and p, in the form of a Problem, for the cotangent v of z."""
        problem, valid = problem.sanitised()
        valid &= jnp.isfinite(z).all(-1) & jnp.isfinite(v).all(-1)
        v_safe, z = (jnp.where(valid[:, None], x, 0) for x in (v, z))
        u, lost = self._adjoint(problem, kept, v_safe, options)
        place, sigma = kept.field.place, problem.op.sigma
        by_p = _tabulate(problem, place, jnp.ones_like(z), lambda x: x * sigma.derivative(x))
        through_nodes = Problem(
            u,
            -(u * kept.field.at_neurons()[0]).sum(-1, keepdims=True),
            -problem.lam / problem.p * (u * by_p.at_neurons()[0]).sum(-1, keepdims=True),
            problem.op,
        )
        exact = valid & (kept.exact | lost)

        def pairwise(carry, problem, z, v, exact):
            u = solve_adjoint_groups(problem, z, jnp.where(exact[:, None], v, 0), options).value
            return select(exact, jax.vjp(jax.checkpoint(lambda problem: problem.residual(z)), problem)[1](u)[0], carry)

        gradient = through_nodes
        if z.shape[1] <= self.polish:
            gradient = run_if(exact.any(), pairwise, gradient, problem, z, v_safe, exact)
        else:
            valid &= ~exact  # too large for the pairwise solve: lost, and said so
        return jax.tree.map(lambda g: jnp.where(valid[:, None], g, jnp.nan), gradient)

    def _adjoint(self, problem, kept, v, options):
        """u with (I + lam DB) u = v through the nodes, corrected until its residual is small; and where it is not."""
        place, sigma = kept.field.place, problem.op.sigma
        tol = 1e-3 if options.tol is None else options.tol
        size = jnp.abs(v).max(-1)

        def correct(carry):
            k, u, r, active = carry
            u = u + _solve_linear(problem, place, kept.diagonal, r, active)
            ku = _tabulate(problem, place, u, sigma.derivative)
            r = v - kept.diagonal * u - problem.lam * problem.p * ku.at_neurons()[0]
            return k + 1, u, r, jnp.abs(r).max(-1) > tol * size

        first = (0, jnp.zeros_like(v), v, size > 0)
        _, u, r, lost = jax.lax.while_loop(lambda c: (c[0] < 8) & c[3].any(), correct, first)
        return u, lost


def _tabulate(problem: Problem, place: Place, v: Float[Array, "G n"], f: Callable[[Array], Array]) -> Field:
    """t -> 1/n sum_k v_k f(p (z_k - t)) and its slope in t, on the nodes of `place`."""
    grid, p = place.grid, problem.p
    rho, mu = (grid.transform(x / v.shape[1]) for x in place.spread(v))

    def derivative(f):
        return lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]

    first = derivative(f)
    zeroth, first, second = (grid.spectrum(g, p) for g in (f, first, derivative(first)))
    value = grid.correlate(zeroth * rho + p * first * mu)
    slope = grid.correlate(p * first * rho + p * p * second * mu)
    return Field(place, value, -slope)


def _solve_linear(problem: Problem, place: Place, diagonal, r, active, tol: float = 1e-2):
    """delta with (diagonal + lam K) delta = r to about `tol`, through the nodes: see the module's equations."""
    n, grid, lam = r.shape[1], place.grid, problem.lam
    spectrum = problem.p * grid.spectrum(problem.op.sigma.derivative, problem.p)
    s = 1 / jnp.where(diagonal > 0.05, diagonal, 1)
    mass, pull = (x / n for x in place.spread_linear(s, s * r))

    def kernel(v):
        return grid.correlate(spectrum * grid.transform(v))

    b = kernel(pull)
    found = conjugate_gradient(
        lambda h: h + lam * kernel(mass * h), b, jnp.ones_like(b),
        tol=tol * jnp.abs(b).max(-1), max_steps=30, active=active, weight=mass,
    )
    h = b - lam * kernel(mass * found.x)  # one more sweep, for nodes that carry no mass
    return s * (r - lam * place.linear(h))
