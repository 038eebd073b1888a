"""A problem of the tests' own, z = tanh(A z + u) with a nonsymmetric A, through public
names: every solver and adjoint against dense float64.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import ibnn_jax as ib
from ibnn_jax.core import AbstractProblem, fixed_point, solve
from ibnn_jax.solvers import from_jaxopt

N, GROUPS = 6, 5


@partial(jax.tree_util.register_dataclass, data_fields=["u", "a"], meta_fields=[])
@dataclass(frozen=True)
class Tanh(AbstractProblem):
    u: Array  # [G, n]
    a: Array  # [n, n]
    shared = ("a",)

    def residual(self, z):
        return jnp.tanh(z @ self.a.T + self.u) - z

    def start(self):
        return jnp.zeros_like(self.u)


def inputs():
    """A of norm 0.7, u and a cotangent v, float64."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(N, N))
    a *= 0.7 / np.linalg.norm(a, 2)
    return a, *rng.normal(size=(2, GROUPS, N))


def exact(a, u, v):
    """(z, dL/dA, dL/du) of L = sum v z, by dense Newton and dense systems."""
    z = np.zeros_like(u)
    for _ in range(50):
        z = np.tanh(z @ a.T + u)
    for _ in range(5):
        t = np.tanh(z @ a.T + u)
        h = np.eye(N) - (1 - t**2)[:, :, None] * a
        z = z + np.linalg.solve(h, (t - z)[..., None])[..., 0]
    x = np.linalg.solve(np.swapaxes(h, 1, 2), v[..., None])[..., 0] * (1 - z**2)
    return z, x.T @ z, x


SOLVERS = [
    ib.Newton(),
    ib.Anderson(),
    ib.Broyden(),
    ib.Picard(),
    ib.Picard(damping=0.5),
    ib.GradientDescent(),
]
solvers = pytest.mark.parametrize("solver", SOLVERS, ids=str)


@solvers
def test_every_solver_finds_the_solution(solver):
    a, u, v = inputs()
    found = solve(Tanh(jnp.asarray(u), jnp.asarray(a)), solver)
    np.testing.assert_allclose(found.value, exact(a, u, v)[0], atol=1e-9)
    assert (found.result == ib.Result.CONVERGED).all()
    single = solve(
        Tanh(jnp.asarray(u, jnp.float32), jnp.asarray(a, jnp.float32)), solver
    )
    assert single.value.dtype == jnp.float32 and single.stats.converged.all()


@pytest.mark.parametrize("name", ["FixedPointIteration", "AndersonAcceleration"])
def test_solvers_of_jaxopt_find_it(name):
    pytest.importorskip("jaxopt")
    a, u, v = inputs()
    found = solve(Tanh(jnp.asarray(u), jnp.asarray(a)), from_jaxopt(name))
    np.testing.assert_allclose(found.value, exact(a, u, v)[0], atol=1e-9)


ADJOINTS = {
    "default": (None, 1e-8),
    "any_order": (ib.Implicit(any_order=True), 1e-8),
    "unrolled": (ib.Unrolled(60), 1e-4),  # Anderson's derivative lags behind z
    "phantom": (ib.Phantom(60), 1e-6),
}


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("solver", [ib.Newton(), ib.Anderson()], ids=str)
def test_every_adjoint_in_the_input_and_in_what_is_shared(solver, adjoint):
    a, u, v = inputs()
    adjoint, tolerance = ADJOINTS[adjoint]

    @partial(jax.jit, static_argnums=0)
    def gradients(vmapped, a, u):
        def loss(a, u):
            return (v * fixed_point(Tanh(u, a), solver, adjoint).value).sum()

        def one(a, u, v):
            return (v * fixed_point(Tanh(u[None], a), solver, adjoint).value).sum()

        if not vmapped:
            return jax.grad(loss, (0, 1))(a, u)
        each = jax.vmap(jax.grad(one, (0, 1)), (None, 0, 0))(a, u, jnp.asarray(v))
        return each[0].sum(0), each[1]

    _, by_a, by_u = exact(a, u, v)
    for vmapped in (False, True):
        found = gradients(vmapped, jnp.asarray(a), jnp.asarray(u))
        np.testing.assert_allclose(found[0], by_a, atol=tolerance)
        np.testing.assert_allclose(found[1], by_u, atol=tolerance)


def test_a_group_of_nan_is_set_aside():
    a, u, _ = inputs()
    u[1, 2] = np.nan
    found = solve(Tanh(jnp.asarray(u), jnp.asarray(a)), ib.Newton())
    assert list(found.result) == [0, 3, 0, 0, 0]
    assert np.isnan(found.value[1]).all() and np.isfinite(found.value[0]).all()


@partial(jax.tree_util.register_dataclass, data_fields=["fixed", "u"], meta_fields=[])
@dataclass(frozen=True)
class Masked(AbstractProblem):
    """z = u where fixed, else z = tanh(z / 2 + u)."""

    fixed: Array  # [G, n], bool
    u: Array

    def residual(self, z):
        free = jnp.tanh(0.5 * z + self.u) - z
        return jnp.where(~self.fixed, free, self.u - z)

    def start(self):
        return jnp.zeros_like(self.u)


@solvers
def test_leaves_may_be_flags(solver):
    u = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)))
    fixed = jnp.arange(12).reshape(3, 4) % 2 == 0
    found = solve(Masked(fixed, u), solver)
    assert found.stats.converged.all()
    np.testing.assert_allclose(found.value[fixed], u[fixed], atol=1e-9)


def test_the_tolerance_follows_the_unknowns_not_the_first_leaf():
    fixed, u = jnp.zeros((2, 3), bool), jnp.full((2, 3), 0.3)
    for dtype, tol in ((jnp.float32, 1e-6), (jnp.float64, 1e-11)):
        found = solve(Masked(fixed, u.astype(dtype)), ib.Newton())
        assert found.stats.converged.all()
        assert float(found.stats.residual.max()) <= 2 * tol


def test_a_start_of_another_shape_or_dtype():
    a, u, v = inputs()
    problem = Tanh(jnp.asarray(u), jnp.asarray(a))
    with pytest.raises(ValueError, match=r"shape of problem.start\(\), \(5, 6\)"):
        solve(problem, ib.Newton(), start=np.zeros((1, N)))
    found = fixed_point(problem, ib.Newton(), start=np.zeros((GROUPS, N), np.float32))
    assert found.value.dtype == jnp.float64
    np.testing.assert_allclose(found.value, exact(a, u, v)[0], atol=1e-9)


@dataclass(frozen=True)
class Unregistered(Tanh):
    """A subclass is not registered with its parent."""


@pytest.mark.parametrize("call", [solve, fixed_point])
def test_a_problem_that_is_not_registered_is_refused(call):
    a, u, _ = inputs()

    def solved(u):
        return call(Unregistered(u, jnp.asarray(a)), ib.Newton()).value

    for wrap in (lambda f: f, jax.jit, jax.vmap):
        with pytest.raises(ValueError, match="Unregistered must be registered as a py"):
            wrap(solved)(jnp.asarray(u)[None])


@partial(jax.tree_util.register_dataclass, data_fields=["u"], meta_fields=[])
@dataclass(frozen=True)
class Logarithm(AbstractProblem):
    """z = 0.9 log z + u, of which a step too long is not finite."""

    u: Array

    def residual(self, z):
        return 0.9 * jnp.log(z) + self.u - z

    def start(self):
        return jnp.full_like(self.u, 0.5)


@pytest.mark.parametrize("solver", [ib.Anderson(), ib.Broyden()], ids=str)
def test_a_trial_that_is_not_finite_is_forgotten(solver):
    u = 1.5 + 3 * np.random.default_rng(0).random((200, 4))
    assert solve(Logarithm(jnp.asarray(u)), solver).stats.converged.all()
