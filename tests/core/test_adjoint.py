"""Gradients of the solution against exact ones and finite differences, for every
differentiable argument.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import ibnn_jax as ib

ADJOINTS = {
    "implicit": None,
    "any_order": ib.Implicit(any_order=True),
    "unrolled": ib.Unrolled(),
}


def worst(found, exact):
    return float(jnp.abs(found - exact).max() / jnp.abs(exact).max())


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_exact_gradients_match_the_reference(golden, adjoint):
    @jax.jit
    def gradients(y, lam, p):
        def loss(y, lam, p):
            z = ib.implicit_bias(
                y,
                lam,
                p,
                golden.coupling,
                solver=ib.Newton(),
                adjoint=ADJOINTS[adjoint],
            )
            return (golden.v * z).sum()

        return jax.grad(loss, (0, 1, 2))(y, lam, p)

    by_y, by_lam, by_p = gradients(
        *(jnp.asarray(x) for x in (golden.y, golden.lam, golden.p))
    )
    assert worst(by_y, golden.dL_dy) < 1e-6
    assert worst(by_lam.reshape(golden.grid), golden.dL_dlam) < 1e-6
    assert worst(by_p.reshape(golden.grid), golden.dL_dp) < 1e-6


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("name", ["uniform", "window", "dense"])
def test_every_argument_against_finite_differences(name, adjoint):
    rng = np.random.default_rng(0)
    y = jnp.asarray(rng.normal(size=(2, 5, 4)))
    w = rng.random((4, 4))
    w = jnp.asarray((w + w.T) / w.sum())

    @jax.jit
    def f(y, lam, p, w):
        w = (w + w.T) / 2
        coupling = {
            "uniform": ib.Uniform((1, 2)),
            "window": ib.Window((3, 3), (1, 2)),
            "dense": ib.Dense(w),
        }[name]
        return ib.implicit_bias(
            y, lam, p, coupling, solver=ib.Newton(), adjoint=ADJOINTS[adjoint]
        )

    lam, p = (
        jnp.array([-0.8, 0.1]).reshape(2, 1, 1),
        jnp.array([2.0, 3.0]).reshape(2, 1, 1),
    )
    modes = {
        "implicit": ["rev"],
        "any_order": ["fwd", "rev"],
        "unrolled": ["fwd", "rev"],
    }[adjoint]
    check_grads(f, (y, lam, p, w), order=1, modes=modes, atol=1e-5, rtol=1e-5)


def test_forward_mode_and_second_derivatives_of_the_documented_path():
    y = jnp.asarray(np.random.default_rng(0).normal(size=6))
    f = partial(
        ib.implicit_bias,
        coupling=ib.Uniform((-1,)),
        solver=ib.Newton(),
        adjoint=ib.Implicit(any_order=True),
    )
    gradient = jax.jit(jax.grad(lambda y, lam: (f(y, lam, 3.0) ** 3).sum(), (0, 1)))
    check_grads(
        gradient,
        (y, jnp.array(-0.5)),
        order=1,
        modes=["fwd", "rev"],
        atol=1e-4,
        rtol=1e-4,
    )
    jacobian = jax.jit(jax.jacfwd(f))(y, -0.5, 3.0)
    chex.assert_trees_all_close(
        jacobian, jax.jit(jax.jacrev(f))(y, -0.5, 3.0), atol=1e-9
    )
    np.testing.assert_allclose(
        jacobian, jacobian.T, atol=1e-9
    )  # K_infinity is symmetric (Eq. 32)


def test_grad_and_vmap_in_either_order():
    y = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 7)))
    lam = jnp.array([-1.0, -0.1, 0.05])
    for solver in (ib.Newton(), ib.MeanField()):
        f = partial(ib.implicit_bias, coupling=ib.Uniform((-1,)), solver=solver)

        def loss(y, lam, f=f):
            return (f(y, lam, 5.0) ** 2).sum()

        inside = jax.jit(jax.vmap(jax.grad(loss, (0, 1))))(y, lam)
        outside = jax.jit(
            jax.grad(lambda y, lam: jax.vmap(loss)(y, lam).sum(), (0, 1))
        )(y, lam)
        one = jax.jit(jax.grad(loss, (0, 1)))
        alone = [one(*pair) for pair in zip(y, lam)]
        chex.assert_trees_all_close(inside, outside, rtol=1e-9)
        chex.assert_trees_all_close(
            inside, jax.tree.map(lambda *x: jnp.stack(x), *alone), rtol=1e-6, atol=1e-9
        )


def test_phantom_approaches_the_implicit_gradient_and_one_term_is_jacobian_free():
    y = jnp.asarray(np.random.default_rng(0).normal(size=9))
    v = jnp.asarray(np.random.default_rng(1).normal(size=9))

    def grad(adjoint):
        return jax.grad(
            lambda y: (
                v @ ib.implicit_bias(y, -0.4, 2.0, ib.Uniform((-1,)), adjoint=adjoint)
            )
        )(y)

    exact = grad(None)
    errors = [worst(grad(ib.Phantom(k, damping=0.6)), exact) for k in (1, 4, 16, 64)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-6
    # k = 1 sees one Picard step from a constant z: dz/dy = 1.
    np.testing.assert_allclose(grad(ib.Phantom(1)), v, atol=1e-12)


def test_solve_adjoint_reports_its_true_residual():
    rng = np.random.default_rng(0)
    z, v = jnp.asarray(rng.normal(size=(2, 4, 20)))
    found = ib.solve_adjoint(z, v, -2.0, 5.0, ib.Uniform((-1,)))
    difference = z[:, None, :] - z[:, :, None]
    k = 5 * (1 - jnp.tanh(5 * difference) ** 2) / 20
    hessian = jnp.eye(20) - 2.0 * (k - jax.vmap(jnp.diag)(k.sum(-1)))
    np.testing.assert_allclose(
        found.value, jnp.linalg.solve(hessian, v[..., None])[..., 0], atol=1e-9
    )
    assert found.stats.converged.all() and found.stats.steps.max() > 1
    short = ib.solve_adjoint(z, v, -2.0, 5.0, ib.Uniform((-1,)), max_steps=2)
    residual = jnp.abs(v - jnp.einsum("gij,gj->gi", hessian, short.value)).max(-1)
    lost = np.asarray(short.result) == ib.Result.NONFINITE
    assert not short.stats.converged.any()
    np.testing.assert_allclose(short.stats.residual[~lost], residual[~lost], rtol=1e-6)
    assert np.isnan(short.value[lost]).all()


def test_a_lost_adjoint_is_nan_for_its_group_alone():
    y = jnp.asarray(np.random.default_rng(0).normal(size=(2, 30)))
    y = y.at[0, 0].set(jnp.nan)
    gradient = jax.grad(
        lambda y: jnp.nansum(ib.implicit_bias(y, -0.5, 3.0, ib.Uniform((-1,))) ** 2)
    )(y)
    assert np.isnan(gradient[0]).all() and np.isfinite(gradient[1]).all()
    starved = ib.Implicit(max_steps=1, tol=1e-12, max_relative_residual=1e-8)
    gradient = jax.grad(
        lambda y: jnp.sin(
            50 * ib.implicit_bias(y, -5.0, 9.0, ib.Uniform((-1,)), adjoint=starved)
        ).sum()
    )(y[1])
    assert np.isnan(gradient).all()


def test_half_precision_is_solved_in_float32():
    y = jnp.asarray(np.random.default_rng(0).normal(size=(4, 50)), jnp.bfloat16)
    z = ib.implicit_bias(y, -0.5, 10.0, ib.Uniform((-1,)))
    exact = ib.implicit_bias(y.astype(jnp.float64), -0.5, 10.0, ib.Uniform((-1,)))
    assert z.dtype == jnp.bfloat16
    np.testing.assert_allclose(z.astype(float), exact, atol=0.02)


def test_solve_says_that_it_is_not_differentiable_and_what_is():
    y = jnp.linspace(0, 1, 9)

    def z(y):
        return ib.solve(y, -0.5, 3.0, ib.Uniform((-1,))).value

    with pytest.raises(TypeError, match="implicit_bias"):
        jax.grad(lambda y: z(y).sum())(y)
    as_constant = jax.jit(jax.grad(lambda y: (jax.lax.stop_gradient(z(y)) * y).sum()))
    np.testing.assert_allclose(as_constant(y), z(y), rtol=1e-12)


@pytest.mark.parametrize("any_order", [False, True])
def test_lost_gradients_are_nan_whatever_the_adjoint(any_order):
    y = np.random.default_rng(0).normal(size=(3, 6))
    y[1, 2] = np.nan

    def gradient(**options):
        adjoint = ib.Implicit(any_order=any_order, **options)

        def total(y):
            coupling, solver = ib.Uniform((-1,)), ib.Newton()
            z = ib.implicit_bias(y, -2.0, 5.0, coupling, solver=solver, adjoint=adjoint)
            return (jnp.arange(6) * z).sum()

        return np.asarray(jax.grad(total)(jnp.asarray(y)))

    found = gradient()
    assert np.isfinite(found[[0, 2]]).all() and np.isnan(found[1]).all()
    assert np.isnan(gradient(max_steps=1, max_relative_residual=1e-6)).all()


def test_the_value_of_phantom_is_the_solution_of_its_statistics():
    y = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)))

    def solved(y, adjoint):
        options = {"solver": ib.Newton(), "adjoint": adjoint, "return_solution": True}
        return ib.implicit_bias(y, -2.0, 10.0, ib.Uniform((-1,)), **options)

    # Ten Picard steps that diverge from there
    phantom, implicit = solved(y, ib.Phantom(10)), solved(y, ib.Implicit())
    np.testing.assert_array_equal(phantom.value, implicit.value)
    by_y = jax.grad(lambda y: solved(y, ib.Phantom(10)).value.sum())(y)
    assert np.isfinite(by_y).all() and float(jnp.abs(by_y).max()) > 0.5
