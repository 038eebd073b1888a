"""Matrices that are well-posed by construction, and which conditions they meet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibnn_jax import nemon


def test_mu_is_at_most_gamma_and_every_matrix_is_reached(draws):
    contractive = jax.jit(nemon.contractive)
    for draw in range(600):
        gamma = (-1.0, 0.0, 0.5, 0.99)[draw % 4]
        T, log_eta = draws.weights(6)
        eta = np.exp(log_eta)
        A = np.asarray(contractive(T, log_eta, gamma))
        assert nemon.matrix_measure(A, eta) <= gamma + 2e-13

        off = A * eta / eta[:, None] * (1 - np.eye(6))
        diagonal = (np.diag(A) + np.abs(off).sum(1) - gamma) / 2
        again = contractive(off + np.diag(diagonal), log_eta, gamma)
        np.testing.assert_allclose(again, A, atol=2e-13)


def test_best_weights_find_the_smallest_mu(draws):
    for _ in range(20):
        A = draws.normal(size=(7, 7))
        smallest = np.linalg.eigvals(nemon.weights.metzler(jnp.asarray(A))).real.max()
        mu = nemon.matrix_measure(A, nemon.best_weights(A))
        assert smallest - 1e-9 <= mu <= smallest + 1e-3


def test_kernel_has_mu_at_most_gamma(draws):
    for gamma in (-1.0, 0.0, 0.9):
        T = draws.normal(size=(3, 5, 2, 2))
        log_eta = draws.normal(size=2)
        kernel = nemon.contractive_kernel(T, log_eta, gamma)
        dense = dense_of(nemon.Convolution(kernel, (6, 7)))
        mu = nemon.matrix_measure(dense, jnp.tile(jnp.exp(log_eta), 42))
        # An inner row has all taps, so there the bound is met.
        assert gamma - 3 < mu <= gamma + 1e-12


def test_convolution_agrees_with_its_dense_matrix(draws):
    conv = nemon.Convolution(draws.normal(size=(3, 3, 2, 2)), (4, 5))
    dense = dense_of(conv)
    w = draws.normal(size=(3, 40))
    np.testing.assert_allclose(conv.apply_transpose(w), w @ dense, atol=1e-12)
    np.testing.assert_allclose(conv.diagonal(), np.diag(dense), atol=1e-12)
    embedded = dense_of(conv.embedded()).reshape(20, 4, 20, 4)
    maps = dense.reshape(20, 2, 20, 2)
    whole = embedded[:, :2, :, :2] + embedded[:, :2, :, 2:]
    np.testing.assert_allclose(whole, maps, atol=1e-12)
    # mu of the map: all taps are inside for some row once the map holds the kernel.
    eta = np.exp(draws.normal(size=2))
    mu = nemon.matrix_measure(dense, np.tile(eta, 20))
    np.testing.assert_allclose(conv.measure(eta), mu, rtol=1e-12)


def test_rivals_meet_their_conditions(draws):
    for _ in range(20):
        A = nemon.norm_bounded(draws.normal(size=(5, 5)), 0.9)
        assert nemon.is_norm_bounded(A) and nemon.is_contractive(A)
        W, S = draws.normal(size=(2, 5, 5))
        assert nemon.is_monotone(nemon.monotone(W, S, 0.1))


def share(condition, matrices):
    return float(jax.vmap(condition)(jnp.asarray(matrices)).mean())


def test_neither_class_contains_the_other(draws):
    gaussian = 0.5 / np.sqrt(10) * draws.normal(size=(4000, 10, 10))
    assert share(nemon.is_monotone, gaussian) > 0.999
    assert 0.06 < share(nemon.is_contractive, gaussian) < 0.10
    assert share(nemon.is_norm_bounded, gaussian) == 0

    scale = np.exp(2 * draws.normal(size=(4000, 4)))
    rows = 0.125 * draws.normal(size=(4000, 4, 4)) * scale[:, :, None] / scale[:, None]
    assert 0.2 < share(nemon.is_monotone, rows) < 0.3
    assert share(nemon.is_contractive, rows) > 0.999


def test_subhomogeneity_bounds_no_matrix(draws):
    A = np.abs(draws.normal(size=(6, 6)))
    u = 0.1 + np.abs(draws.normal(size=(3, 6)))
    assert not nemon.is_contractive(A) and not nemon.is_monotone(A)
    assert nemon.is_subhomogeneous(A, u)
    ends = []
    for z in (np.full((3, 6), 1e-3), np.full((3, 6), 50.0)):
        for _ in range(200):
            z = np.tanh(z @ A.T + u)
        ends.append(z)
    np.testing.assert_allclose(*ends, rtol=1e-12)
    assert not nemon.is_subhomogeneous(-A, u)
    assert nemon.subhomogeneous_degree(A, u, jax.nn.relu) > 0.99


def dense_of(conv):
    n = int(np.prod(conv.event))
    return np.asarray(conv.apply(jnp.eye(n))).T


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: nemon.contractive(np.ones((2, 3)), np.ones(2), 0.0), "T \\[n, n\\]"),
        (lambda: nemon.contractive(np.eye(2), np.ones(2), 1.0), "gamma must be below"),
        (lambda: nemon.matrix_measure(np.eye(2), np.ones(3)), "eta \\[n\\]"),
        (
            lambda: nemon.contractive_kernel(np.ones((2, 3, 1, 1)), np.ones(1), 0.0),
            "odd h and w",
        ),
        (
            lambda: nemon.contractive_kernel(np.ones((3, 3, 1, 1)), np.ones(2), 0.0),
            "one value per channel",
        ),
    ],
)
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
