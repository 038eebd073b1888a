"""Conjugate gradients against dense solves."""

import jax.numpy as jnp
import numpy as np
import pytest

from ibnn_jax.core.linear_solve import bicgstab, conjugate_gradient


def systems(weight):
    """A [G, n, n], b [G, n] and 1 / the diagonal: A = D + K diag(weight) is symmetric
    in the inner product of the weights.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, weight.shape[-1]))
    kernel = 1 / np.cosh(x[:, :, None] - x[:, None, :]) ** 2
    matrix = kernel * weight[:, None, :] + (1 + rng.random(x.shape))[
        :, :, None
    ] * np.eye(x.shape[1])
    acting = np.diagonal(kernel * weight[:, None, :], axis1=1, axis2=2) > 0
    assert (acting == (weight > 0)).all()
    return (
        jnp.asarray(matrix),
        jnp.asarray(rng.normal(size=x.shape)),
        jnp.asarray(1 / np.diagonal(matrix, axis1=1, axis2=2)),
    )


def solved(matrix, b, inverse_diagonal, **options):
    options = {
        "tol": jnp.full(len(b), 1e-10),
        "max_steps": 50,
        "active": jnp.ones(len(b), bool),
    } | options
    return conjugate_gradient(
        lambda v: jnp.einsum("gij,gj->gi", matrix, v), b, inverse_diagonal, **options
    )


@pytest.mark.parametrize("without", [0, 7, 12], ids="{} unknowns without weight".format)
def test_it_is_the_dense_solution(without):
    weight = np.random.default_rng(1).random((3, 12))
    weight[:, :without] = 0
    matrix, b, inverse_diagonal = systems(weight)
    found = solved(matrix, b, inverse_diagonal, weight=jnp.asarray(weight))
    assert (
        found.ok.all() and (found.steps <= 12 - without).all()
    )  # as many as there are unknowns with weight
    np.testing.assert_allclose(
        found.x, np.linalg.solve(matrix, b[..., None])[..., 0], atol=1e-9
    )


def test_groups_not_active_stay_at_zero():
    weight = np.random.default_rng(1).random((3, 12)) * (np.arange(12) > 4)
    matrix, b, inverse_diagonal = systems(weight)
    found = solved(
        matrix,
        b,
        inverse_diagonal,
        weight=jnp.asarray(weight),
        active=jnp.array([True, False, True]),
    )
    assert (
        not found.x[1].any()
        and found.x[::2].all()
        and list(found.steps > 0) == [True, False, True]
    )


def test_negative_curvature_stops_a_group_and_says_so():
    matrix, b, inverse_diagonal = systems(np.full((3, 12), 0.1))
    matrix = matrix.at[1].set(-matrix[1])
    found = solved(matrix, b, jnp.abs(inverse_diagonal))
    assert list(found.ok) == [True, False, True] and found.steps[1] == 0


@pytest.mark.parametrize("corner", [0.0, 1e-7, 0.5])
def test_bicgstab_passes_breakdowns_in_float32(corner):
    """A b is orthogonal to b, or nearly: a step along it would be endless."""
    rng = np.random.default_rng(0)
    matrix = np.eye(6) + 0.1 * rng.normal(size=(3, 6, 6))
    matrix[:, :2, :] = 0
    matrix[:, :, :2] = 0
    matrix[:, :2, :2] = [[corner, 1.0], [-1.0, 2.0]]
    b = np.zeros((3, 6))
    b[:, 0] = 1
    b[1:] += [[0] * 6, rng.normal(size=6)]
    matrix, b = (jnp.asarray(x, jnp.float32) for x in (matrix, b))
    found = bicgstab(
        lambda v: jnp.einsum("gij,gj->gi", matrix, v),
        b,
        jnp.ones_like(b),
        tol=jnp.full(3, 1e-5),
        max_steps=50,
        active=jnp.ones(3, bool),
    )
    assert found.ok.all() and (found.steps < 20).all()
    exact = np.linalg.solve(np.float64(matrix), np.float64(b)[:, :, None])[:, :, 0]
    np.testing.assert_allclose(found.x, exact, atol=1e-4)
