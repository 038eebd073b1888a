"""The pairwise operators, the energy and the bound, against sums in numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ibnn_jax as ib
from ibnn_jax.ibnn import pairwise
from ibnn_jax.ibnn.layout import bind


def window_matrix(height, width, size):
    """w of a Window as a dense matrix."""
    rows, cols = np.divmod(np.arange(height * width), width)
    near = (abs(rows[:, None] - rows) <= size[0] // 2) & (
        abs(cols[:, None] - cols) <= size[1] // 2
    )
    return near / np.prod(size)


CASES = {
    "uniform": (ib.Uniform((1, 2)), (2, 5, 6, 3), np.full((30, 30), 1 / 30)),
    "window": (ib.Window((3, 5)), (2, 5, 6, 3), window_matrix(5, 6, (3, 5))),
    "dense": (
        ib.Dense(window_matrix(3, 4, (3, 3))),
        (2, 12),
        window_matrix(3, 4, (3, 3)),
    ),
}
SIGMAS = {
    "tanh": (ib.tanh, np.tanh, lambda t: np.log(np.cosh(t))),
    "hard_tanh": (
        ib.hard_tanh,
        lambda t: np.clip(t, -1, 1),
        lambda t: np.where(abs(t) < 1, t * t / 2, abs(t) - 0.5),
    ),
    "arctan": (
        ib.Sigma(
            jnp.arctan,
            lambda t: t * jnp.arctan(t) - 0.5 * jnp.log1p(t * t),
            max_slope=1.0,
        ),
        np.arctan,
        lambda t: t * np.arctan(t) - 0.5 * np.log1p(t * t),
    ),
}


@pytest.mark.parametrize("kept", [pairwise.KEPT, 0])
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("case", CASES)
def test_operator_and_energy_match_the_written_out_sums(case, sigma, kept, monkeypatch):
    monkeypatch.setattr(pairwise, "KEPT", kept)
    coupling, shape, w = CASES[case]
    sigma, value, primitive = SIGMAS[sigma]
    if case == "dense":
        coupling = ib.Dense(w, sigma)
    else:
        coupling = dataclasses.replace(coupling, sigma=sigma)
    rng = np.random.default_rng(0)
    y, z = rng.normal(size=(2, *shape))
    lam, p = -0.7, 2.5
    problem, layout = bind(y, lam, p, coupling)
    groups = np.asarray(layout.to_groups(jnp.asarray(z)))
    difference = groups[:, None, :] - groups[:, :, None]  # [G, i, k] = z_k - z_i
    np.testing.assert_allclose(
        problem.op.bias(groups, problem.p),
        (w * value(p * difference)).sum(-1),
        atol=1e-12,
    )
    v = rng.normal(size=groups.shape)
    eps = 1e-6
    hessian = problem.linearise(groups).matvec
    numeric = -(
        problem.residual(groups + eps * v) - problem.residual(groups - eps * v)
    ) / (2 * eps)
    np.testing.assert_allclose(
        hessian(v), numeric, atol=2e-6 if sigma is not ib.hard_tanh else 1e-5
    )
    expected = 0.5 * ((groups - layout.to_groups(jnp.asarray(y))) ** 2).sum(
        -1
    ) - lam / 2 * (w * primitive(p * difference) / p).sum((1, 2))
    found = ib.energy(z, y, lam, p, coupling)
    assert found.shape == layout.batch
    np.testing.assert_allclose(found.reshape(-1), expected, rtol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_residual_is_minus_the_gradient_of_the_energy(case):
    coupling, shape, _ = CASES[case]
    y, z = np.random.default_rng(1).normal(size=(2, *shape))
    gradient = jax.grad(lambda z: ib.energy(z, y, 0.8, 3.0, coupling).sum())(
        jnp.asarray(z)
    )
    problem, layout = bind(y, 0.8, 3.0, coupling)
    np.testing.assert_allclose(
        layout.to_groups(gradient),
        -problem.residual(layout.to_groups(jnp.asarray(z))),
        atol=1e-12,
    )


def test_uniqueness_bound_is_where_the_hessian_can_first_lose_definiteness():
    """Uniform: 1/p; a window of side 3 has eigenvalues down to -1/3: 3/(4p)."""
    p = 10.0
    assert ib.uniqueness_bound(p, ib.Uniform((-1,))) == pytest.approx(0.1)
    assert ib.uniqueness_bound(p, ib.Uniform((-1,), ib.hard_tanh)) == pytest.approx(
        0.05
    )
    for slope in (p, int(p), np.int32(p), np.float32(p)):
        assert ib.uniqueness_bound(slope, ib.Window((3, 3))) == pytest.approx(0.075)
    assert ib.uniqueness_bound(
        p, ib.Dense(np.array([[0.0, 2.0], [2.0, 0.0]]))
    ) == pytest.approx(0.025)
    assert ib.uniqueness_bound(p, ib.Dense(np.eye(2) + 1)) == pytest.approx(1 / 30)
    np.testing.assert_allclose(
        ib.uniqueness_bound(jnp.array([1.0, 10.0]), ib.Uniform()), [1.0, 0.1]
    )
    # All neurons equal is the worst case for Uniform: eigenvalue 1 - lam p there.
    for lam, sign in ((0.099, 1), (0.101, -1)):
        problem, _ = bind(np.zeros((1, 8)), lam, p, ib.Uniform((-1,)))
        hessian = problem.linearise(jnp.zeros((1, 8))).matvec
        matrix = jax.vmap(lambda v, hessian=hessian: hessian(v[None])[0])(jnp.eye(8))
        assert np.sign(np.linalg.eigvalsh(matrix).min()) == sign
    # Two neurons that see only each other reach the general bound: eigenvalue 1 - 2 lam
    # p.
    problem, _ = bind(
        np.zeros((1, 2)), 0.051, p, ib.Dense(np.array([[0.0, 1.0], [1.0, 0.0]]))
    )
    hessian = problem.linearise(jnp.zeros((1, 2))).matvec
    assert (
        np.linalg.eigvalsh(
            jax.vmap(lambda v, hessian=hessian: hessian(v[None])[0])(jnp.eye(2))
        ).min()
        < 0
    )


Y = np.zeros((2, 8, 8, 3), np.float32)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: ib.solve(Y.astype(int), 0.0, 1.0, ib.Uniform()), "floating"),
        (lambda: ib.solve(Y[0, 0], 0.0, 1.0, ib.Uniform()), "do not exist"),
        (lambda: ib.solve(Y, 0.0, 1.0, ib.Uniform((1, -3))), "twice"),
        (lambda: ib.Uniform(()), "at least one axis"),
        (lambda: ib.solve(Y[:, :0], 0.0, 1.0, ib.Uniform()), "empty"),
        (lambda: ib.solve(Y, np.zeros(8), 1.0, ib.Uniform()), "broadcast"),
        (lambda: ib.solve(Y, np.zeros((2, 8, 1, 1)), 1.0, ib.Uniform()), "broadcast"),
        (lambda: ib.solve(Y, 0.0, np.ones(2), ib.Uniform()), "broadcast"),
        (lambda: ib.solve(Y, 0.0, 0.0, ib.Uniform()), "p must be positive"),
        (
            lambda: ib.solve(Y, 0.0, np.array([1.0, -1.0, 1.0]), ib.Uniform()),
            "p must be positive",
        ),
        (lambda: ib.solve(Y, 1j, 1.0, ib.Uniform()), "real"),
        (lambda: ib.solve(Y, 0.0, 1.0, "uniform"), "Uniform, Window or Dense"),
        (lambda: ib.Dense(np.ones((2, 3))), "square"),
        (lambda: ib.Dense(np.array([[0.0, 1.0], [0.5, 0.0]])), "symmetric"),
        (lambda: ib.Dense(-np.eye(2)), "non-negative"),
        (lambda: ib.Dense(np.full((2, 2), np.nan)), "NaN"),
        (lambda: ib.solve(Y, 0.0, 1.0, ib.Dense(np.eye(4))), "last axis"),
        (lambda: ib.Window((4, 4)), "odd"),
        (lambda: ib.solve(Y, 0.0, 1.0, ib.Window((9, 9))), "larger than the image"),
        (
            lambda: ib.solve(Y, 0.0, 1.0, ib.Uniform(), solver="newtonn"),
            "unknown solver",
        ),
        (lambda: ib.solve(Y, 0.0, 1.0, ib.Window(), solver=ib.MeanField()), "Uniform"),
        (lambda: ib.solve(Y, 0.0, 1.0, ib.Uniform(), tol=0.0), "tol"),
        (lambda: ib.solve(Y, 0.0, 1.0, ib.Uniform(), max_steps=0), "max_steps"),
        (
            lambda: ib.solve(
                Y, 0.0, 1.0, ib.Uniform(), solver=ib.MeanField(), trace=True
            ),
            "trace",
        ),
        (
            lambda: ib.implicit_bias(Y, 0.0, 1.0, ib.Uniform(), adjoint="implicit"),
            "adjoint",
        ),
        (
            lambda: ib.implicit_bias(
                Y, 0.0, 1.0, ib.Uniform(), solver=ib.MeanField(), adjoint=ib.Unrolled()
            ),
            "MeanField",
        ),
        (lambda: ib.Phantom(0), "at least 1"),
        (lambda: ib.MeanField(cells=(3,)), "at least 4"),
        (lambda: ib.MeanField(cells=(16, 8)), "increasing"),
        (lambda: ib.energy(Y, Y[0], 0.0, 1.0, ib.Uniform()), "one shape"),
        (lambda: ib.solve_adjoint(Y, Y[0], 0.0, 1.0, ib.Uniform()), "one shape"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_an_unknown_option_is_an_error():
    with pytest.raises(TypeError, match="tolerance"):
        ib.Newton(tolerance=1e-3)
