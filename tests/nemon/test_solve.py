"""Solutions, steps, gradients and refusals of nemon.solve and nemon.fixed_point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ibnn_jax
from ibnn_jax import nemon
from ibnn_jax.nemon.equation import bind

SOLVERS = [
    "auto",
    ibnn_jax.Picard(),
    ibnn_jax.Anderson(),
    ibnn_jax.Broyden(),
    ibnn_jax.GradientDescent(),
    ibnn_jax.solvers.from_jaxopt("AndersonAcceleration"),
]
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "leaky": jax.nn.leaky_relu,
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
}


def dense_solution(A, u, activation, steps=100_000):
    """z by the average iteration in float64, apart from the library's loop."""
    a = 1 / (1 - min(np.diag(A).min(), 0))

    def body(_, z):
        return (1 - a) * z + a * activation(z @ A.T + u)

    return jax.lax.fori_loop(0, steps, body, jnp.zeros_like(u))


def reaches(exact, A, u, activation, eta, solver):
    solution = nemon.solve(A, u, activation, eta, solver=solver, max_steps=50_000)
    assert (solution.result == ibnn_jax.Result.CONVERGED).all(), solver
    np.testing.assert_allclose(solution.value, exact, atol=1e-9)


@pytest.mark.parametrize("gamma", [-1.0, 0.0, 0.5, 0.9, 0.99])
def test_every_solver_reaches_the_solution(draws, gamma):
    A, u, eta = draws.system(8, gamma)
    exact = dense_solution(A, u, jax.nn.relu)
    assert jnp.abs(jax.nn.relu(exact @ A.T + u) - exact).max() < 1e-13
    for solver in SOLVERS:
        reaches(exact, A, u, jax.nn.relu, eta, solver)


@pytest.mark.parametrize("name", list(ACTIVATIONS)[1:])
def test_every_activation_is_solved(draws, name):
    for gamma in (-1.0, 0.0, 0.9):
        A, u, eta = draws.system(8, gamma)
        exact = dense_solution(A, u, ACTIVATIONS[name])
        reaches(exact, A, u, ACTIVATIONS[name], eta, "auto")


@pytest.mark.parametrize("gamma", [-1.0, 0.0, 0.5, 0.9, 0.99])
def test_average_iteration_contracts_as_in_theory(draws, gamma):
    A, u, eta = draws.worst(8, gamma)
    u = np.abs(u) + 1  # all units active: the slope is 1 everywhere
    problem = bind(A, u, jax.nn.relu, eta)
    a = float(nemon.average_step(A))
    picard = ibnn_jax.Picard()
    z = np.asarray(nemon.solve(A, u, eta=eta).value)
    # Along the slowest direction, eta itself, the bound is met.
    start = z + 1e-3 * eta
    moved = picard.step(problem, picard.init(problem, start), None, False).z
    factor = (np.abs(moved - z) / eta).max() / 1e-3
    if gamma >= 0:
        np.testing.assert_allclose(factor, 1 - a * (1 - gamma), rtol=1e-3)
    assert factor <= 1 - a * (1 - max(gamma, 0)) + 1e-6


def test_longer_steps_than_the_average_iteration_can_expand(draws):
    A, u, eta = draws.system(10, 0.0, rows=50)
    safe = float(nemon.average_step(A))
    for step, works in ((safe, True), (1.0, False)):
        solver = ibnn_jax.Picard(step)
        stats = nemon.solve(A, np.abs(u), eta=eta, solver=solver, tol=1e-6).stats
        assert bool(stats.converged.all()) == works


@pytest.mark.parametrize("gamma", [-1.0, 0.0, 0.9, 0.99])
def test_average_iteration_keeps_its_bound_on_steps(draws, gamma):
    for system in (draws.system, draws.worst):
        A, u, eta = system(10, gamma, rows=50)
        bound = nemon.most_steps(A, u, eta=eta, gamma=gamma)
        picard = ibnn_jax.Picard()
        solution = nemon.solve(A, u, eta=eta, solver=picard, max_steps=int(bound.max()))
        assert solution.stats.converged.all()
        assert (solution.stats.steps <= bound).all()


@pytest.mark.parametrize("name, gamma", list(zip(ACTIVATIONS, (-1.0, 0.0, 0.9, 0.5))))
def test_gradients_agree_with_the_dense_system(draws, gamma, name):
    A, u, eta = draws.system(7, gamma)
    v = draws.normal(size=u.shape)
    activation = ACTIVATIONS[name]

    def loss(A, u):
        return (v * nemon.fixed_point(A, u, activation, eta)).sum()

    z = dense_solution(A, u, activation)
    d = jax.vmap(jax.vmap(jax.grad(activation)))(z @ A.T + u)
    H = np.eye(7) - d[:, :, None] * A
    w = d * np.linalg.solve(H.transpose(0, 2, 1), v[:, :, None])[:, :, 0]
    dA, du = jax.grad(loss, argnums=(0, 1))(A, u)
    np.testing.assert_allclose(du, w, atol=1e-6)
    np.testing.assert_allclose(dA, np.einsum("gi,gj->ij", w, z), atol=1e-6)

    adjoint = nemon.solve_adjoint(A, u, z, v, activation)
    assert adjoint.stats.converged.all()
    np.testing.assert_allclose(d * adjoint.value, w, atol=1e-9)
    residual = jnp.einsum("gji,gj->gi", H, adjoint.value) - v
    np.testing.assert_allclose(
        adjoint.stats.residual, jnp.abs(residual).max(1), atol=1e-13
    )


@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.99])
def test_float32_ends_converged_where_rounding_allows(draws, gamma):
    for system in (draws.system, draws.worst):
        A, u, eta = (jnp.asarray(x, jnp.float32) for x in system(20, gamma, rows=200))
        solution = nemon.solve(A, u, eta=eta, max_steps=50)
        assert solution.stats.converged.all()


def test_tiny_cotangents_are_not_lost(draws):
    A, u, eta = (jnp.asarray(x, jnp.float32) for x in draws.system(7, 0.0))

    def gradient(scale):
        def loss(u):
            return scale * nemon.fixed_point(A, u, eta=eta).sum()

        return jax.grad(loss)(u)

    tiny = jnp.float32(1e-30)
    np.testing.assert_allclose(gradient(tiny) / tiny, gradient(1.0), rtol=1e-4)
    assert (gradient(0.0) == 0).all()


def test_unrolled_and_phantom_adjoints(draws):
    A, u, eta = draws.system(6, 0.0)
    v = draws.normal(size=u.shape)

    def gradient(adjoint, solver=ibnn_jax.Picard()):
        def loss(A):
            z = nemon.fixed_point(A, u, jnp.tanh, eta, solver=solver, adjoint=adjoint)
            return (v * z).sum()

        return jax.grad(loss)(A)

    exact = gradient(ibnn_jax.Implicit())
    unrolled = gradient(ibnn_jax.Unrolled(400))
    np.testing.assert_allclose(unrolled, exact, atol=1e-8)
    a = float(nemon.average_step(A))
    series = [jnp.abs(gradient(ibnn_jax.Phantom(k, a)) - exact).max() for k in (1, 30)]
    assert series[0] > 10 * series[1]


def test_splitting_solves_monotone_networks(draws):
    W, S = draws.normal(size=(2, 8, 8)) / 3
    A = nemon.monotone(W, S, 0.2)
    u = draws.normal(size=(5, 8))
    length = 0.2 / jnp.linalg.norm(jnp.eye(8) - A, 2) ** 2
    ends = [
        nemon.solve(A, u, solver=solver, tol=1e-11, max_steps=20_000)
        for solver in (
            nemon.PeacemanRachford(),
            nemon.PeacemanRachford(0.3),
            nemon.ForwardBackward(float(length)),
        )
    ]
    for end in ends:
        assert end.stats.converged.all()
        np.testing.assert_allclose(end.value, ends[0].value, atol=1e-8)
    with pytest.raises(ValueError, match="relu"):
        nemon.solve(A, u, jnp.tanh, solver=nemon.PeacemanRachford())


def test_convolutions_are_solved_like_their_matrices(draws):
    kernel = nemon.contractive_kernel(
        draws.normal(size=(3, 3, 2, 2)), draws.normal(size=2), 0.5
    )
    A = nemon.Convolution(kernel, (4, 5))
    dense = A.apply(jnp.eye(40)).T
    u = draws.normal(size=(1, 4, 5, 2))
    v = draws.normal(size=u.shape)

    def loss(A, u):
        return (v.reshape(u.shape) * nemon.fixed_point(A, u)).sum()

    flat = u.reshape(1, 40)
    z = nemon.solve(A, u).value
    same = nemon.solve(dense, flat).value
    np.testing.assert_allclose(z.reshape(1, 40), same, atol=1e-9)
    dA, du = jax.grad(loss, (0, 1))(A, u)
    dense_dA, dense_du = jax.grad(loss, (0, 1))(dense, flat)
    np.testing.assert_allclose(du.reshape(1, 40), dense_du, atol=1e-8)
    _, pullback = jax.vjp(lambda A: A.apply(jnp.eye(40)).T, A)
    np.testing.assert_allclose(dA.kernel, pullback(dense_dA)[0].kernel, atol=1e-8)


def test_codes_say_what_is_known(draws):
    A, u, eta = draws.system(6, 0.5)
    u[1, 2] = np.nan
    solution = nemon.solve(A, u, eta=eta)
    codes = ibnn_jax.Result
    assert solution.result.tolist() == [0, codes.NONFINITE, 0, 0]
    assert np.isnan(solution.value[1]).all()
    few = nemon.solve(A, u[:1], eta=eta, solver=ibnn_jax.Picard(), max_steps=2)
    assert few.result.tolist() == [codes.MAX_STEPS] and few.stats.steps == 2
    # With badly chosen weights nothing is known; the best ones are found.
    badly = nemon.solve(A, u[:1], eta=np.geomspace(1, 1e6, 6))
    assert badly.result.tolist() == [codes.CONVERGED_NOT_UNIQUE]
    assert nemon.solve(A, u[:1]).result.tolist() == [codes.CONVERGED]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_dtypes_shapes_and_empty_batches(draws, dtype, strict_ranks):
    A, u, eta = draws.system(6, 0.5)
    A, u = jnp.asarray(A, jnp.float32), jnp.asarray(u, dtype)
    for batch in ((), (0,), (2, 1)):
        inputs = jnp.resize(u, (*batch, 6))
        solution = nemon.solve(A, inputs, eta=eta)
        assert solution.value.shape == (*batch, 6)
        assert solution.value.dtype == u.dtype
        assert solution.result.shape == solution.stats.residual.shape == batch
        assert solution.stats.converged.all()
    grad = jax.grad(lambda u: nemon.fixed_point(A, u, eta=eta).sum())(inputs)
    assert grad.shape == inputs.shape and grad.dtype == u.dtype


def test_vmap_over_seeds_and_jit(draws):
    systems = [draws.system(6, gamma) for gamma in (0.0, 0.5, 0.9)]
    A, u, eta = map(jnp.stack, zip(*systems))

    def both(A, u, eta):
        def loss(A, u):
            return (nemon.fixed_point(A, u, eta=eta) ** 2).sum()

        return nemon.solve(A, u, eta=eta), jax.grad(loss, (0, 1))(A, u)

    together = jax.jit(jax.vmap(both))(A, u, eta)
    for k in range(3):
        alone = both(A[k], u[k], eta[k])
        for left, right in zip(jax.tree.leaves(together), jax.tree.leaves(alone)):
            np.testing.assert_allclose(left[k], right, atol=1e-8)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"activation": jax.nn.gelu}, "nondecreasing; gelu"),
        ({"activation": jnp.exp}, "slope at most 1; exp"),
        ({"activation": jnp.sum}, "elementwise"),
        ({"activation": jax.nn.softmax}, "elementwise"),
        ({"activation": "relu"}, "function of one jax array"),
        ({"activation": np.tanh}, "function of one jax array"),
        ({"A": None}, "A must be real"),
        ({"A": np.ones((3, 4))}, "square floating matrix"),
        ({"A": np.ones((3, 3), int)}, "square floating matrix"),
        ({"u": np.ones((2, 4))}, "must end in the shape \\[3\\]"),
        ({"u": np.ones((2, 3), int)}, "floating dtype"),
        ({"eta": np.array([1.0, -1.0, 1.0])}, "eta must be positive"),
        ({"eta": np.ones(2)}, "eta must be \\[3\\]"),
        ({"solver": "newton"}, "unknown solver"),
        ({"tol": 0.0}, "tol must be positive"),
        ({"max_steps": 0}, "max_steps"),
    ],
)
def test_bad_calls_are_refused(change, message):
    options = {"A": np.zeros((3, 3)), "u": np.ones((2, 3))} | change
    with pytest.raises(ValueError, match=message):
        nemon.solve(**options)


def test_solve_refuses_to_be_differentiated(draws):
    A, u, eta = draws.system(4, 0.0)
    with pytest.raises(TypeError, match="not differentiable"):
        jax.grad(lambda u: nemon.solve(A, u, eta=eta).value.sum())(u)
