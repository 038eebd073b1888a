"""A training step as `train` runs it, in a scan over steps and a vmap over seeds.

Two questions: what the convolution costs there, and what an IBNN costs.
"""

import jax

import ibnn_jax
from benchmarks import report
from benchmarks.networks import (
    BATCH,
    LARGE,
    NETWORKS,
    SMALL,
    Network,
    training_images,
)

CONVOLUTIONS = {
    "jax.lax": jax.lax.conv_general_dilated,
    "canonical": ibnn_jax.canonical_convolution,
}
LAMS = (None, -0.5)
SIZES = {  # (network, seeds), batch, steps in the scan, repetitions
    "tiny": (((SMALL, 2),), 8, 2, 1),
    "quick": (((SMALL, 5),), BATCH, 4, 5),
    "full": (((SMALL, 1), (SMALL, 5), (LARGE, 1)), BATCH, 4, 5),
}


def run(size: str) -> report.Report:
    networks, batch, steps, repetitions = SIZES[size]
    rows = []
    for name, seeds in networks:
        rows += _network(name, seeds, batch, steps, repetitions)
        print(f"{name}, {seeds} seed(s): done", flush=True)
    return report.Report(rows, list(rows[0]), lambda figure: _draw(figure, rows))


def _network(name, seeds, batch, steps, repetitions) -> list[dict]:
    images, labels, _ = training_images(NETWORKS[name][2], steps * batch)
    x = images.reshape(steps, batch, *images.shape[1:])
    target = labels.reshape(steps, batch)
    keys = jax.random.split(jax.random.key(0), seeds)
    calls = {}
    for convolution, function in CONVOLUTIONS.items():
        for lam in LAMS:
            network = Network(name, lam, function)
            state = jax.vmap(network.start)(keys)
            epoch = _epoch(network)
            calls[convolution, lam] = lambda epoch=epoch, state=state: epoch(
                state, x, target
            )
    times = report.alternating(calls, repetitions)
    return [
        {
            "network": name,
            "seeds": seeds,
            "convolution": convolution,
            "model": "SM" if lam is None else f"IBNN, lam {lam}",
            "ms per step": 1e3 * seconds / steps,
            "ms per step and seed": 1e3 * seconds / steps / seeds,
            "IBNN / SM": seconds / times[convolution, None],
        }
        for (convolution, lam), seconds in times.items()
    ]


def _epoch(network: Network):
    """A scan over steps, of all seeds at once, jitted."""

    def step(state, batch):
        return network.step(*state, *batch), None

    def scan(state, x, target):
        return jax.lax.scan(step, state, (x, target))[0]

    return jax.jit(jax.vmap(scan, (0, None, None)))


def _draw(figure, rows):
    axis = figure.subplots()
    names = [
        f"{r['network']}\n{r['seeds']} seed(s), {r['model']}"
        for r in rows
        if r["convolution"] == "canonical"
    ]
    for convolution, width in zip(CONVOLUTIONS, (-0.4, 0.4)):
        mine = [r for r in rows if r["convolution"] == convolution]
        heights = [r["ms per step and seed"] for r in mine]
        axis.bar(names, heights, width, align="edge", label=convolution)
    axis.set(ylabel="ms per training step and seed", yscale="log")
    axis.tick_params(axis="x", labelsize=6, rotation=45)
    axis.legend(title="convolution")
