"""NEMON: steps and time to 1e-6 over gamma; a training step beside an MLP.

All solve the same systems z = relu(A z + u) from the same start. The rows of A are of
unequal size, as in trained networks, which makes the average iteration slow. MON's
splitting needs I - A to be monotone, which these matrices are not bound to be.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import ibnn_jax
from benchmarks import report
from ibnn_jax import nemon

TOL = 1e-6
TORCHDEQ_STEPS = 300  # its Broyden costs the square of their number
SIZES = {  # rows, n, gammas, most steps, repetitions
    "tiny": (4, 10, (0.0,), 300, 1),
    "quick": (50, 50, (-1.0, 0.0, 0.9), 2000, 3),
    "full": (100, 100, (-1.0, 0.0, 0.5, 0.9, 0.99), 5000, 10),
}
SOLVERS = {
    "average iteration": ibnn_jax.Picard(),
    "Anderson": ibnn_jax.Anderson(),
    "Broyden": ibnn_jax.Broyden(),
    "Newton (auto)": ibnn_jax.Newton(),
    "MON's Peaceman-Rachford": nemon.PeacemanRachford(),
    "MON's forward-backward": nemon.ForwardBackward(0.05),
}


def run(size: str) -> report.Report:
    rows, n, gammas, most, repetitions = SIZES[size]
    calls = {name: jax.jit(_solver(solver, most)) for name, solver in _all().items()}
    found = []
    for gamma in gammas:
        A, u, eta = _system(gamma, n, rows)
        with jax.default_matmul_precision("highest"):
            compiled = {name: partial(call, A, u, eta) for name, call in calls.items()}
            seconds = report.alternating(compiled, repetitions)
        torch, eager = _torchdeq(A, u, most)
        seconds |= report.alternating(eager, min(repetitions, 3))
        for name in seconds:
            stats = compiled[name]().stats if name in compiled else torch(name)
            found.append(
                {
                    "solver": name,
                    "gamma": gamma,
                    "steps, most": int(np.max(stats.steps)),
                    "steps, mean": float(np.mean(stats.steps)),
                    "converged %": 100 * float(np.mean(stats.converged)),
                    "milliseconds": 1e3 * seconds[name],
                }
            )
    found += _training_step(size, repetitions)
    return report.Report(found, list(found[0]), lambda figure: _draw(figure, found))


def _system(gamma: float, n: int, rows: int):
    """(A, u, eta), the rows of A of unequal size."""
    rng = np.random.default_rng(0)
    T = rng.normal(size=(n, n)) * np.exp(rng.normal(size=(n, 1))) / n
    log_eta = 0.5 * rng.normal(size=n)
    A = nemon.contractive(T, log_eta, gamma)
    u = rng.normal(size=(rows, n))
    return tuple(jnp.asarray(x, jnp.float32) for x in (A, u, np.exp(log_eta)))


def _all() -> dict:
    try:
        jaxopt = ibnn_jax.solvers.from_jaxopt("AndersonAcceleration")
    except ImportError:
        print("jaxopt is not installed and left out: pip install '.[bench]'")
        return SOLVERS
    return SOLVERS | {"jaxopt AndersonAcceleration": jaxopt}


def _solver(solver, most):
    def call(A, u, eta):
        options = {"solver": solver, "tol": TOL, "max_steps": most}
        return nemon.solve(A, u, eta=eta, **options)

    return call


def _torchdeq(A, u, most):
    """(name -> Stats, name -> call) of torchdeq's solvers on the averaged map."""
    try:
        import torch
        from torchdeq.solver import get_solver
    except ImportError:
        print("torchdeq is not installed and left out: pip install '.[bench-torch]'")
        return None, {}
    a = float(nemon.average_step(A))
    A, u = (torch.tensor(np.asarray(x)) for x in (A, u))

    def residual(z):
        return torch.relu(z @ A.T + u) - z

    def call(name):
        with torch.no_grad():
            start = torch.zeros_like(u)
            steps = min(most, TORCHDEQ_STEPS)
            options = {"max_iter": steps, "tol": TOL, "stop_mode": "abs"}
            z, _, info = get_solver(name)(
                lambda z: z + a * residual(z), start, **options
            )
            size = residual(z).abs().amax(1)
        met = size <= TOL * (1 + u.abs().amax(1))
        return ibnn_jax.Stats(info["nstep"].numpy(), size.numpy(), met.numpy())

    names = {f"torchdeq {name}": name for name in ("anderson", "broyden")}
    calls = {title: partial(call, name) for title, name in names.items()}
    return lambda title: calls[title](), calls


class MLP(nnx.Module):
    """Two hidden layers of n units: as many parameters as NEMON, but for eta."""

    def __init__(self, inputs: int, n: int, rngs: nnx.Rngs):
        self.first = nnx.Linear(inputs, n, rngs=rngs)
        self.second = nnx.Linear(n, n, rngs=rngs)
        self.readout = nnx.Linear(n, 10, rngs=rngs)

    def __call__(self, x):
        return self.readout(nnx.relu(self.second(nnx.relu(self.first(x)))))


def _training_step(size: str, repetitions: int) -> list[dict]:
    """Milliseconds of a step of Adam: 100 images of 784 pixels, n = 100, gamma = 0."""
    batch, inputs, n = (4, 9, 5) if size == "tiny" else (100, 784, 100)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random((batch, inputs)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, batch))
    rngs = nnx.Rngs(0)
    networks = {
        "training step, MLP": MLP(inputs, n, rngs),
        "training step, NEMON": ibnn_jax.EquilibriumClassifier(
            (inputs,), 10, features=n, rngs=rngs
        ),
    }
    steps = {name: _step(model, x, labels) for name, model in networks.items()}
    seconds = report.alternating(steps, 10 * repetitions)
    return [
        {"solver": name, "gamma": 0.0, "milliseconds": 1e3 * value}
        for name, value in seconds.items()
    ]


def _step(model, x, labels):
    graph, params = nnx.split(model)
    optimizer = optax.adam(1e-3)

    def loss(params):
        logits = nnx.merge(graph, params)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    return partial(step, params, optimizer.init(params))


def _draw(figure, rows):
    steps, times = figure.subplots(1, 2)
    solvers = dict.fromkeys(r["solver"] for r in rows if "steps, most" in r)
    for solver in solvers:
        mine = [r for r in rows if r["solver"] == solver]
        gammas = [r["gamma"] for r in mine]
        met = [r["converged %"] == 100 for r in mine]
        for axis, value in ((steps, "steps, most"), (times, "milliseconds")):
            values = [r[value] if ok else np.nan for r, ok in zip(mine, met)]
            axis.semilogy(gammas, values, "o-", label=solver)
    steps.set(xlabel="gamma", title="most steps, where all rows converged")
    times.set(xlabel="gamma", title="milliseconds")
    times.legend(fontsize=6)
