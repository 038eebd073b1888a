"""The mean-field solver for uniform coupling: O(n) instead of O(n^2) a step.

Under w = 1/n every neuron of a group sees the same function of its own state,

    z_i = y_i - lam G(z_i),    G(t) = 1/n sum_k sigma(p (z_k - t)),

so z_i = T(y_i) for one increasing function T. The n neurons are replaced by a few
weighted points (`quadrature`), the same equation is solved exactly for these, and
B(y) = G(T(y)) is read off at the neurons: z_i = y_i - lam B(y_i). At the points two
derivatives of T are known, T' = 1 / Y' and T'' = -Y'' / Y'^3 with Y(t) = t + lam G(t),
so the interpolation is of sixth order.

The adjoint (I + lam DB) u = v reduces in the same way: with K(t) = p sigma'(p t) and
s_i = T'(y_i),

    u_i = s_i (v_i - lam H(z_i))
    H(t) = b(t) - lam sum_l w_l K(z_l - t) x_l
    b(t) = 1/n sum_k s_k v_k K(z_k - t)

where x solves the adjoint system of the points for the right-hand side b.
"""

import math
import operator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool

from ibnn_jax.core.batching import in_blocks, merge_vmap, select
from ibnn_jax.core.options import check_between, check_count, check_flag, settle
from ibnn_jax.core.solver import AbstractSolver
from ibnn_jax.ibnn.equation import IBNNProblem, Span
from ibnn_jax.ibnn.mean_field import pallas
from ibnn_jax.ibnn.mean_field.forward import Forward
from ibnn_jax.ibnn.mean_field.plan import Plan
from ibnn_jax.ibnn.mean_field.point_system import Arithmetic
from ibnn_jax.ibnn.mean_field.pullback import Pullback
from ibnn_jax.ibnn.mean_field.quadrature import Place
from ibnn_jax.ibnn.mean_field.points import Prepared
from ibnn_jax.ibnn.mean_field.sizes import cells_for, grids_for
from ibnn_jax.ibnn.pairwise import Operator, UniformOperator
from ibnn_jax.ibnn.sigmas import tanh

NEURONS = 320_000  # a CPU treats so many together: their arrays stay in its cache


@dataclass(frozen=True)
class MeanField(AbstractSolver):
    """Newton on 2 * cells + 2 points that stand for a group's neurons.

    For Uniform couplings. The reported residual is that of the points plus the
    estimated errors of the quadrature and of the interpolation, so it speaks of the
    equation of the neurons. It has to be within the tolerance of `solve` and below
    50 tol / p, unless that is beyond rounding; what rounding z adds is reported too.
    Near the uniqueness bound, where the slope s of z in y is steep, the gradient asks
    for more: no attempt counts whose residual exceeds 0.01 / (p s^2).

    Groups whose estimate exceeds the tolerance, or that spread over more than 4 / p in
    a cell, are solved again: from there Newton's method works on all neurons, at a cost
    that does not depend on what they do, because sums of tanh go through a grid in p z
    (`mean_field.newton`). That is for sigma = tanh and groups of more than 128 neurons
    on CPUs, 267 on GPUs; others get more cells. In groups of more than 1,024 neurons
    what no grid serves, such as far tails or a clump next to the bound, goes through
    patches (`mean_field.patches`), which hold any neurons at some ten times the cost.
    Groups that miss the tolerance every time are finished by pairwise Newton, at
    O(n^2) per step: always for these groups only.

    Args:
        cells: m of every attempt, increasing; the error falls as m^-4 once
            p * (range of y) / m < 1. Given cells are followed by pairs, not by grids.
            None takes 7 for groups of up to 64 neurons, (7, 19) up to 128, and beyond
            23 on CPUs and (31, 63) on GPUs before the grids, (23, 55, 511) and
            (31, 63, 127, 511) where sigma is not tanh; (63, 511) on other devices.
            Attempts with as many points as neurons are left out, so 511 serves groups
            of more than 1024; each one costs a second or two of compilation.
        default_tol: the tolerance when `solve` gets none.
        pairwise_max_size: largest n for the pairwise finish; larger groups that miss
            the tolerance are reported as MAX_STEPS. 0: no group is.
        kernels: on NVIDIA GPUs, solve a group's points in one Pallas kernel where there
            are 16 to 128 of them (7, 15, 31 or 63 cells) and sigma is tanh; False
            leaves them to XLA, as on other devices.

    Raises:
        ValueError: cells empty, not increasing, or less than 4; default_tol not
            positive; pairwise_max_size not a whole number of at least 0.
    """

    cells: tuple[int, ...] | None = None
    default_tol: float = 1e-4
    pairwise_max_size: int = 20_000
    kernels: bool = True

    exact: ClassVar[bool] = False

    def __post_init__(self):
        if self.cells is not None:
            settle(self, cells=_increasing(self.cells))
        tol = check_between("MeanField: default_tol", self.default_tol, 0, math.inf)
        name = "MeanField: pairwise_max_size"
        settle(
            self,
            default_tol=tol,
            pairwise_max_size=check_count(name, self.pairwise_max_size, least=0),
            kernels=check_flag("MeanField: kernels", self.kernels),
        )

    def plan(self, problem: IBNNProblem) -> Plan:
        """What is tried for groups of this size: no grids where cells were asked for,
        and of later attempts on points those that have fewer points than neurons.
        """
        n = problem.y.shape[1]
        on_grids = self.cells is None and problem.op.sigma == tanh
        grids = grids_for(n) if on_grids else ()
        first, *later = self.cells or cells_for(n, bool(grids))
        cells = (first, *(count for count in later if 2 * count + 2 < n))
        return Plan(cells, grids, pairs=n <= self.pairwise_max_size)

    @staticmethod
    def fits(op: Operator | None) -> bool:
        """Whether the coupling is uniform and sigma smooth."""
        return isinstance(op, UniformOperator) and op.sigma.smooth

    def check(self, problem):
        self.check_operator(getattr(problem, "op", None))

    def check_operator(self, op: Operator | None) -> None:
        """Raise ValueError where the coupling is not uniform or sigma not smooth."""
        if not self.fits(op):
            raise ValueError(
                "MeanField solves Uniform couplings with a smooth sigma only; "
                "use solver=Newton()"
            )

    def tolerance_for(self, dtype):
        return self.default_tol

    def solve(self, problem, settings, start=None):
        def on_groups(problem):
            prepared, valid = self._prepare(problem)
            return Forward(self.plan(problem), settings, prepared, valid).solve()

        return merge_vmap(in_blocks(on_groups, _group_size, NEURONS))(problem)

    def pullback(self, problem, residuals, v, adjoint):
        def on_groups(problem, residuals, v):
            prepared, valid = self._prepare(problem)
            plan, linear = self.plan(problem), adjoint.linear
            return Pullback(plan, prepared, valid, residuals, linear).apply(v)

        mapped = merge_vmap(in_blocks(on_groups, _group_size, NEURONS))
        return mapped(problem, residuals, v)

    def _prepare(self, problem: IBNNProblem) -> tuple[Prepared, Bool[Array, "G"]]:
        """(the problem ready to be reduced, which of its groups are finite)."""
        how, moments = Arithmetic(problem.op.sigma), Place.moments
        on_points = partial(_as_it_is, how)
        if self.kernels and problem.op.sigma == tanh:
            on_points, moments = partial(pallas.per_group, how), pallas.moments
        span = problem.span()
        problem, valid = problem.sanitised()
        span = Span(*select(valid, span, jax.tree.map(jnp.zeros_like, span)))
        return Prepared(problem, span, on_points, moments), valid


def _group_size(problem) -> int:
    return problem.y.shape[1]


def _as_it_is(how, f, *arrays):
    return f(how, *arrays)


def _increasing(cells) -> tuple[int, ...]:
    try:
        whole = tuple(operator.index(count) for count in cells)
    except TypeError:
        raise ValueError(
            f"MeanField: cells must be increasing whole numbers; got {cells!r}"
        ) from None
    if not whole or list(whole) != sorted(set(whole)) or whole[0] < 4:
        raise ValueError(
            "MeanField: cells must be increasing numbers, the first at least 4; "
            f"got {cells}"
        )
    return whole
