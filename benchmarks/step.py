"""The training step of an IBNN over that of its twin, and where the difference goes."""

import time

import jax
import jax.numpy as jnp
import numpy as np

import ibnn_jax
from benchmarks import inputs, report
from benchmarks.networks import (
    BATCH,
    LARGE,
    MIDDLE,
    NETWORKS,
    SMALL,
    Network,
    first_activations,
    training_images,
)

P = 10.0
COUPLING = ibnn_jax.Uniform((-3, -2))
CHECKED = 16  # images whose residual is computed pairwise
SIZES = {  # (network, seeds), lams, batch, warm-up steps of the twin, repetitions
    "tiny": (((SMALL, 1),), (-0.5,), 8, 2, 1),
    "quick": (((SMALL, 1),), (-0.5,), BATCH, 50, 10),
    "full": (
        ((SMALL, 1), (SMALL, 5), (MIDDLE, 1), (LARGE, 1)),
        (-0.5, -2.0, 0.095),
        BATCH,
        100,
        10,
    ),
}
COLUMNS = [
    "network",
    "seeds",
    "lam",
    "step ms",
    "step / twin",
    "inference / twin",
    "compile s",
    "true residual",
    "forward ms",
    "adjoint ms",
]


def run(size: str) -> report.Report:
    networks, lams, batch, warmup, repetitions = SIZES[size]
    rows = []
    for name, seeds in networks:
        rows += _network(name, lams, batch, seeds, warmup, repetitions)
        print(f"{name}, {seeds} seed(s): done", flush=True)
    return report.Report(rows, COLUMNS, lambda figure: _draw(figure, rows))


def _network(name, lams, batch, seeds, warmup, repetitions) -> list[dict]:
    images, labels, source = training_images(NETWORKS[name][2], 40 * batch)
    keys = jax.random.split(jax.random.key(0), seeds)
    twin = Network(name, None)
    twin_step, twin_infer = _seeds(twin)
    params, rest = jax.vmap(twin.start)(keys)
    # A trained network is what counts: its activations are what the solver meets.
    for i in range(warmup):
        rows = slice(i % 40 * batch, (i % 40 + 1) * batch)
        params, rest = twin_step(params, rest, images[rows], labels[rows])

    x, target = jnp.asarray(images[:batch]), jnp.asarray(labels[:batch])
    calls = {
        ("twin", "step"): lambda: twin_step(params, rest, x, target),
        ("twin", "infer"): lambda: twin_infer(params, rest, x),
    }
    found = {}
    for lam in lams:
        more, found[lam] = _ibnn(Network(name, lam), twin, lam, keys, params, rest, x,
                                 target)  # fmt: skip
        calls |= {(lam, piece): call for piece, call in more.items()}
    times = report.alternating(calls, repetitions)
    case = {"network": name, "seeds": seeds, "batch": batch, "images": source}
    return [case | {"lam": lam} | _ratios(times, lam) | found[lam] for lam in lams]


def _seeds(network: Network):
    """(step, inference) of all seeds at once, jitted."""
    step = jax.jit(jax.vmap(network.step, (0, 0, None, None)))
    return step, jax.jit(jax.vmap(network.infer, (0, 0, None)))


def _ibnn(network, twin, lam, keys, params, rest, x, target) -> tuple[dict, dict]:
    """(calls to time, what else is known) of an IBNN with the weights of its twin."""
    adopt = jax.jit(jax.vmap(lambda *args: network.adopt(twin, *args)))
    params, rest = adopt(keys, params, rest)
    step, infer = _seeds(network)
    lowered = step.lower(params, rest, x, target)
    start = time.perf_counter()
    compiled = lowered.compile()
    compile_s = time.perf_counter() - start
    calls, found = _first_layer(first_activations(network, params, rest, x), lam)
    calls |= {
        "step": lambda: compiled(params, rest, x, target),
        "infer": lambda: infer(params, rest, x),
    }
    return calls, found | {"compile s": compile_s}


def _first_layer(y, lam) -> tuple[dict, dict]:
    """(calls of the solver without and with adjoint, how its solution was reached)."""
    v = jnp.asarray(np.random.default_rng(0).normal(size=y.shape), y.dtype)

    @jax.jit
    def forward(y):
        return ibnn_jax.implicit_bias(y, lam, P, COUPLING, has_stats=True)

    @jax.jit
    def both(y, v):
        _, back = jax.vjp(lambda y: ibnn_jax.implicit_bias(y, lam, P, COUPLING), y)
        return back(v)

    z, stats = forward(y)
    residual = inputs.true_residual(z[:CHECKED], y[:CHECKED], lam, P, COUPLING)
    calls = {"forward": lambda: forward(y), "both": lambda: both(y, v)}
    return calls, {
        "true residual": float(residual.max()),
        "neurons": y.size,
        "steps": int(stats.steps.max()),
        "converged": float(stats.converged.mean()),
    }


def _ratios(times: dict, lam: float) -> dict:
    return {
        "step ms": 1e3 * times[lam, "step"],
        "twin ms": 1e3 * times["twin", "step"],
        "step / twin": times[lam, "step"] / times["twin", "step"],
        "inference / twin": times[lam, "infer"] / times["twin", "infer"],
        "forward ms": 1e3 * times[lam, "forward"],
        "adjoint ms": 1e3 * (times[lam, "both"] - times[lam, "forward"]),
    }


def _draw(figure, rows):
    axis = figure.subplots()
    names = [f"{r['network']}\n{r['seeds']} seed(s), lam {r['lam']}" for r in rows]
    for column, width, label in (
        ("step / twin", 0.4, "training step"),
        ("inference / twin", -0.4, "inference"),
    ):
        heights = [r[column] for r in rows]
        axis.bar(names, heights, width=width, label=label, align="edge")
    axis.axhline(2, color="grey", lw=0.8)
    axis.set(ylabel="times the standard twin")
    axis.tick_params(axis="x", labelsize=6, rotation=45)
    axis.legend()
