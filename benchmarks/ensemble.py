"""A training step inside a scan over steps and a vmap over seeds, as `train` runs it: the convolution, and the price of an IBNN."""

from functools import partial

import jax
import optax
from flax import nnx

import ibnn_jax
from benchmarks import report
from benchmarks.step import LARGE, NETWORKS, SMALL, training_images

CONVOLUTIONS = {
    "jax.lax": jax.lax.conv_general_dilated,
    "canonical": ibnn_jax.canonical_convolution,
}
SIZES = {  # (network, seeds), batch, steps in the scan, repetitions
    "tiny": (((SMALL, 2),), 8, 2, 1),
    "quick": (((SMALL, 5),), 128, 4, 5),
    "full": (((SMALL, 1), (SMALL, 5), (LARGE, 1)), 128, 4, 5),
}


def run(size):
    networks, batch, steps, repetitions = SIZES[size]
    rows = []
    for name, seeds in networks:
        rows += _network(name, seeds, batch, steps, repetitions)
        print(f"{name}, {seeds} seed(s): done", flush=True)
    return report.Report(rows, list(rows[0]), lambda figure: _draw(figure, rows))


def _network(name, seeds, batch, steps, repetitions):
    images, labels, _ = training_images(NETWORKS[name][2], batch)
    x, target = (
        a[: steps * batch].reshape(steps, batch, *a.shape[1:]) for a in (images, labels)
    )
    keys = jax.random.split(jax.random.key(0), seeds)
    calls = {}
    for convolution in CONVOLUTIONS:
        for lam in (None, -0.5):
            epoch, state = _epoch(name, lam, CONVOLUTIONS[convolution], keys)
            calls[convolution, lam] = lambda epoch=epoch, state=state: epoch(
                state, x, target
            )
    times = report.alternating(calls, repetitions)
    return [
        {
            "network": name, "seeds": seeds, "convolution": convolution, "model": "SM" if lam is None else f"IBNN, lam {lam}",
            "ms per step": 1e3 * times[convolution, lam] / steps, "ms per step and seed": 1e3 * times[convolution, lam] / steps / seeds,
            "IBNN / SM": times[convolution, lam] / times[convolution, None],
        }
        for convolution, lam in calls
    ]  # fmt: skip


def _epoch(name, lam, convolution, keys):
    """(a jitted scan over steps of every seed at once, its initial state)."""
    layers, channels, shape = NETWORKS[name]

    def start(key):
        model = ibnn_jax.UCN(
            shape,
            10,
            layers=layers,
            channels=channels,
            neuron=None if lam is None else partial(ibnn_jax.ImplicitBias, lam=lam),
            conv_general_dilated=convolution,
            rngs=nnx.Rngs(key),
        )
        return nnx.split(model, nnx.Param, ...)

    graph = nnx.eval_shape(lambda: start(keys[0])[0])

    def step(state, batch):
        params, rest = state

        def loss(params):
            model = nnx.merge(graph, params, rest, copy=True)
            model.train()
            cross_entropy = optax.softmax_cross_entropy_with_integer_labels(
                model(batch[0]), batch[1]
            ).mean()
            return cross_entropy, nnx.split(model, nnx.Param, ...)[2]

        gradient, rest = jax.grad(loss, has_aux=True)(params)
        return (jax.tree.map(lambda a, g: a - 0.01 * g, params, gradient), rest), None

    epoch = jax.vmap(
        lambda state, x, target: jax.lax.scan(step, state, (x, target))[0],
        (0, None, None),
    )
    return jax.jit(epoch), jax.vmap(lambda key: start(key)[1:])(keys)


def _draw(figure, rows):
    axis = figure.subplots()
    names = [
        f"{r['network']}\n{r['seeds']} seed(s), {r['model']}"
        for r in rows
        if r["convolution"] == "canonical"
    ]
    for convolution, width in zip(CONVOLUTIONS, (-0.4, 0.4)):
        heights = [
            r["ms per step and seed"] for r in rows if r["convolution"] == convolution
        ]
        axis.bar(names, heights, width, align="edge", label=convolution)
    axis.set(ylabel="ms per training step and seed", yscale="log")
    axis.tick_params(axis="x", labelsize=6, rotation=45)
    axis.legend(title="convolution")
