"""The training step of an IBNN over that of its standard twin, and where the difference goes."""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import ibnn_jax
from benchmarks import inputs, report
from ibnn_jax.ibnn.layout import bind

BATCH = 128
NETWORKS = {
    "UCN(1,3) 28x28x1": (1, 3, (28, 28, 1)),
    "UCN(2,3) 32x32x3": (2, 3, (32, 32, 3)),
    "UCN(3,8) 32x32x3": (3, 8, (32, 32, 3)),
}
SMALL, MIDDLE, LARGE = NETWORKS
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


def run(size):
    networks, lams, batch, warmup, repetitions = SIZES[size]
    rows = []
    for name, seeds in networks:
        rows += _network(name, lams, batch, seeds, warmup, repetitions)
        print(f"{name}, {seeds} seed(s): done", flush=True)
    columns = [
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
    return report.Report(rows, columns, lambda figure: _draw(figure, rows))


def training_images(shape, batch):
    """Training images of the data set of this shape, or smooth random ones where it is not prepared."""
    from train import data

    try:
        dataset = data.load("fashion_mnist" if shape[2] == 1 else "cifar10", None)
        return (
            dataset.train_images[: 40 * batch] / np.float32(255),
            dataset.train_labels[: 40 * batch].astype(np.int32),
            "real",
        )
    except (FileNotFoundError, ImportError):
        rng = np.random.default_rng(0)
        rough = rng.random((40 * batch, *shape)).astype(np.float32)
        smooth = (
            rough
            + np.roll(rough, 1, 1)
            + np.roll(rough, 1, 2)
            + np.roll(rough, (1, 1), (1, 2))
        ) / 4
        return smooth, rng.integers(0, 10, 40 * batch, dtype=np.int32), "synthetic"


def _network(name, lams, batch, seeds, warmup, repetitions):
    layers, channels, shape = NETWORKS[name]
    images, labels, source = training_images(shape, batch)
    build = lambda key, implicit, lam=None: ibnn_jax.UCN(
        shape,
        10,
        layers=layers,
        channels=channels,
        neuron=partial(ibnn_jax.ImplicitBias, lam=lam) if implicit else None,
        rngs=nnx.Rngs(key),
    )
    keys = jax.random.split(jax.random.key(0), seeds)

    def split(model):
        return nnx.split(model, nnx.Param, ...)

    def programs(graph):
        def step(params, rest, x, labels):
            def loss(params):
                model = nnx.merge(graph, params, rest, copy=True)
                model.train()
                return optax.softmax_cross_entropy_with_integer_labels(
                    model(x), labels
                ).mean(), split(model)[2]

            (_, new), gradient = jax.value_and_grad(loss, has_aux=True)(params)
            gradient = optax.clip_by_global_norm(1.0).update(
                gradient, optax.EmptyState()
            )[0]
            return jax.tree.map(lambda a, g: a - 0.01 * g, params, gradient), new

        def infer(params, rest, x):
            model = nnx.merge(graph, params, rest, copy=True)
            model.eval()
            return model(x)

        return jax.jit(jax.vmap(step, (0, 0, None, None))), jax.jit(
            jax.vmap(infer, (0, 0, None))
        )

    twin_graph = split(nnx.eval_shape(lambda: build(jax.random.key(0), False)))[0]
    twin_step, twin_infer = programs(twin_graph)
    params, rest = jax.vmap(lambda key: split(build(key, False))[1:])(keys)
    for i in range(
        warmup
    ):  # a trained network is what counts: its activations are what the solver meets
        rows = slice(i % 40 * batch, (i % 40 + 1) * batch)
        params, rest = twin_step(params, rest, images[rows], labels[rows])
    x, target = jnp.asarray(images[:batch]), jnp.asarray(labels[:batch])

    calls = {
        ("twin", "step"): lambda: twin_step(params, rest, x, target),
        ("twin", "infer"): lambda: twin_infer(params, rest, x),
    }
    extra = {}
    for lam in lams:
        graph = split(
            nnx.eval_shape(lambda lam=lam: build(jax.random.key(0), True, lam))
        )[0]

        def adopt(key, params, rest, lam=lam):
            model = build(key, True, lam)
            ibnn_jax.transfer(nnx.merge(twin_graph, params, rest, copy=True), model)
            return split(model)[1:]

        p, r = jax.jit(jax.vmap(adopt))(keys, params, rest)
        step, infer = programs(graph)
        step, compile_s = _compiled(step, p, r, x, target)
        calls[lam, "step"] = lambda step=step, p=p, r=r: step(p, r, x, target)
        calls[lam, "infer"] = lambda infer=infer, p=p, r=r: infer(p, r, x)
        model = nnx.merge(graph, *jax.tree.map(lambda a: a[0], (p, r)), copy=True)
        extra[lam], pieces = _first_layer(model.blocks[0].conv(x), lam)
        extra[lam] |= {"compile s": compile_s}
        calls |= {(lam, piece): call for piece, call in pieces.items()}
    times = report.alternating(calls, repetitions)
    rows = []
    for lam in lams:
        rows.append({
            "network": name, "seeds": seeds, "lam": lam, "batch": batch, "images": source,
            "step ms": 1e3 * times[lam, "step"], "twin ms": 1e3 * times["twin", "step"],
            "step / twin": times[lam, "step"] / times["twin", "step"],
            "inference / twin": times[lam, "infer"] / times["twin", "infer"], "forward ms": 1e3 * times[lam, "forward"],
            "adjoint ms": 1e3 * (times[lam, "both"] - times[lam, "forward"]),
        } | extra[lam])  # fmt: skip
    return rows


def _compiled(function, *args):
    """(the compiled function, seconds that XLA took)."""
    lowered = function.lower(*args)
    start = time.perf_counter()
    return lowered.compile(), time.perf_counter() - start


def _first_layer(y, lam):
    """(the exact residual of the first layer's solution, and how it was reached; calls of its solver with and without the adjoint)."""
    coupling = ibnn_jax.Uniform((-3, -2))
    forward = jax.jit(
        lambda y: ibnn_jax.implicit_bias(y, lam, 10.0, coupling, has_stats=True)
    )
    v = jnp.asarray(np.random.default_rng(0).normal(size=y.shape), y.dtype)
    both = jax.jit(
        lambda y, v: jax.vjp(
            lambda y: ibnn_jax.implicit_bias(y, lam, 10.0, coupling), y
        )[1](v)
    )
    few = slice(0, 16)
    z, stats = forward(y)
    residual = inputs.true_residual(z[few], y[few], lam, 10.0, coupling)
    return {
        "true residual": float(residual.max()), "neurons": bind(y, lam, 10.0, coupling)[0].y.size,
        "steps": int(stats.steps.max()), "converged": float(stats.converged.mean()),
    }, {"forward": lambda: forward(y), "both": lambda: both(y, v)}  # fmt: skip


def _draw(figure, rows):
    axis = figure.subplots()
    names = [f"{r['network']}\n{r['seeds']} seed(s), lam {r['lam']}" for r in rows]
    axis.bar(
        names,
        [r["step / twin"] for r in rows],
        width=0.4,
        label="training step",
        align="edge",
    )
    axis.bar(
        names,
        [r["inference / twin"] for r in rows],
        width=-0.4,
        label="inference",
        align="edge",
    )
    axis.axhline(2, color="grey", lw=0.8)
    axis.set(ylabel="times the standard twin")
    axis.tick_params(axis="x", labelsize=6, rotation=45)
    axis.legend()
