"""What solve and gradients cost over the width of the activations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import ibnn_jax
from benchmarks import inputs, report

P = 10.0
COUPLING = ibnn_jax.Uniform((-1,))
STDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
LAMS = (-20.0, -2.0, -0.5, 0.05, 0.095)
WINDOW = ibnn_jax.Window((5, 5), axes=(-2, -1))
LAYER = (384, 784)  # groups and neurons of a UCN(1, 3) with a batch of 128
IMAGES = (384, 28, 28)
SMALL = (1920, 64)  # those of the digits demo
TWIN = (28, 28, 1)  # its images
FEW = 4  # groups whose exact residual is computed
SIZES = {  # (shape of y, coupling, stds, lams) of every part, batch of the twin, rounds
    "tiny": (
        (
            ((4, 100), COUPLING, (0.1, 3.0), (-2.0,)),
            ((2, 6, 6), WINDOW, (0.1,), (-2.0,)),
        ),
        4,
        1,
    ),
    "quick": (
        (
            (LAYER, COUPLING, (0.1, 1.0, 10.0), (-2.0, 0.05)),
            (SMALL, COUPLING, (0.1,), (-0.5,)),
        ),
        128,
        5,
    ),
    "full": (
        (
            (LAYER, COUPLING, STDS, LAMS),
            (SMALL, COUPLING, (0.03, 0.1, 0.3), LAMS[1:]),
            (IMAGES, WINDOW, (0.1, 1.0, 10.0), LAMS[1:4]),
        ),
        128,
        5,
    ),
}


def run(size):
    parts, batch, rounds = SIZES[size]
    twin, rows = _twin_step(batch), []
    for shape, coupling, stds, lams in parts:
        both, pairless = _programs(coupling)
        normal, v = np.random.default_rng(0).normal(size=(2, *shape))
        v = v.astype(np.float32)
        for std in stds:
            y = jnp.asarray((std * normal).astype(np.float32))
            calls = {lam: functools.partial(both, y, v, lam) for lam in lams}
            times = report.alternating({"twin": twin} | calls, rounds)
            for lam in lams:
                z, stats, *_ = both(y, v, lam)
                residual = inputs.true_residual(z[:FEW], y[:FEW], lam, P, coupling)
                largest = np.abs(y[:FEW]).max(tuple(range(1, y.ndim)))
                allowed = 1e-4 * (1 + largest + abs(lam))
                rows.append({
                    "coupling": type(coupling).__name__, "groups": len(y),
                    "neurons": y[0].size, "std": std, "lam": lam,
                    "ms": 1e3 * times[lam], "over twin": times[lam] / times["twin"],
                    "steps": int(stats.steps.max()),
                    "converged %": 100 * float(stats.converged.mean()),
                    "pairs %": 100 * pairless(y, v, lam),
                    "residual / tol": float((residual / allowed).max()),
                })  # fmt: skip
            print(f"{type(coupling).__name__} {shape}, std {std}: done", flush=True)
    return report.Report(rows, list(rows[0]), lambda figure: _draw(figure, rows))


def _programs(coupling):
    """(solve and gradients, the share of groups that only pairs of neurons solve)."""
    both = _both(coupling, "auto")
    if coupling != COUPLING:
        return both, lambda *_: 1.0
    without = _both(coupling, ibnn_jax.MeanField(pairwise_max_size=0))
    return both, lambda *args: float(1 - without(*args)[1].converged.mean())


def _both(coupling, solver):
    """z, its statistics, dL/dy, dL/dlam and dL/dp for L = v . z."""

    @jax.jit
    def call(y, v, lam):
        def solve(y, lam, p):
            return ibnn_jax.implicit_bias(
                y, lam, p, coupling, solver=solver, has_stats=True
            )

        per_group = (len(y), *[1] * (y.ndim - 1))
        lam, p = jnp.full(per_group, lam, y.dtype), jnp.full(per_group, P, y.dtype)
        z, back, stats = jax.vjp(solve, y, lam, p, has_aux=True)
        return z, stats, *back(v)

    return call


def _twin_step(batch):
    """A call that is one training step of the standard twin of UCN(1, 3)."""
    model = ibnn_jax.UCN(TWIN, 10, layers=1, channels=3, neuron=None, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random((batch, *TWIN)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, batch, dtype=np.int32))

    @jax.jit
    def step(params, rest):
        def loss(params):
            model = nnx.merge(graph, params, rest, copy=True)
            model.train()
            losses = optax.softmax_cross_entropy_with_integer_labels(model(x), labels)
            return losses.mean(), nnx.split(model, nnx.Param, ...)[2]

        (_, new), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda a, g: a - 0.01 * g, params, gradient), new

    return lambda: step(params, rest)


def _draw(figure, rows):
    axis = figure.subplots()
    layer = [row for row in rows if row["neurons"] != SMALL[1]]
    for coupling, style in (("Uniform", "o-"), ("Window", "x--")):
        mine = [row for row in layer if row["coupling"] == coupling]
        for lam in dict.fromkeys(row["lam"] for row in mine):
            line = [row for row in mine if row["lam"] == lam]
            axis.loglog(
                [row["std"] for row in line],
                [row["over twin"] for row in line],
                style,
                label=f"{coupling}, lam = {lam:g}",
            )
    axis.axhline(2, color="grey", lw=0.8)
    axis.set(
        xlabel="standard deviation of the activations, p = 10",
        ylabel="solve and gradients over the twin's step",
    )
    axis.legend(fontsize=7)
