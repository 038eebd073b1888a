"""The default path on this accelerator: is it right, and what does a step cost?

On GPUs with the kernels of MeanField and without them, side by side. Every row names
the device. Without an accelerator the smallest sizes run, to show that all of it works.
"""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

import ibnn_jax
from benchmarks import inputs, report
from benchmarks.networks import BATCH, LARGE, NETWORKS, SMALL, Network, training_images

P = 10.0
COUPLING = ibnn_jax.Uniform((-2, -1))
KERNELS, LOOPS = ibnn_jax.MeanField(), ibnn_jax.MeanField(kernels=False)
COLUMNS = [
    "case",
    "solver",
    "kind",
    "lam",
    "residual",
    "gradient error",
    "network",
    "seeds",
    "width",
    "step ms",
    "step / twin",
    "compile s",
    "temporary MB",
]


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        groups, side: of the inputs that are solved; 4 kinds of them. lams: of these.
        networks: (name, seeds), trained at lam = -0.5.
        widths: factors on the activations of every layer.
        batch: images. warmup: steps of the twin before. repetitions: of every call.
    """

    groups: int = 16
    side: int = 28
    lams: tuple[float, ...] = (-5.0, -0.5, 0.05, 0.095)
    networks: tuple = ((SMALL, 1), (SMALL, 20), (LARGE, 1), (LARGE, 20))
    widths: tuple[float, ...] = (1.0, 2.0, 4.0)
    batch: int = BATCH
    warmup: int = 100
    repetitions: int = 10


SIZES = {
    "tiny": Size(2, 14, (-0.5,), ((SMALL, 1),), (1.0,), 4, 1, 1),
    "quick": Size(8, 28, (-0.5, 0.095), ((SMALL, 1), (SMALL, 20)), (1.0, 4.0)),
    "full": Size(),
}


def run(size: str) -> report.Report:
    if jax.default_backend() == "cpu" and size != "tiny":
        print("no accelerator here: the smallest sizes", flush=True)
        size = "tiny"
    chosen = SIZES[size]
    rows = _correctness(chosen)
    print("correctness: done", flush=True)
    for name, seeds in chosen.networks:
        rows += _Training(name, seeds, chosen).measure()
        print(f"{name}, {seeds} seed(s): done", flush=True)
    device = jax.devices()[0]
    named = {"device": device.device_kind, "platform": device.platform}
    return report.Report(
        [named | row for row in rows], COLUMNS, lambda figure: _draw(figure, rows)
    )


def _solvers() -> dict[str, ibnn_jax.MeanField]:
    """What is compared; elsewhere than on GPUs both are the same program."""
    on_gpu = jax.default_backend() == "gpu"
    return {"kernels": KERNELS, "loops": LOOPS} if on_gpu else {"loops": LOOPS}


def _correctness(size: Size) -> list[dict]:
    """The worst group of every kind of input, against float64 and all pairs."""
    rows = []
    exact = _solution_and_gradient(ibnn_jax.Newton())
    programs = {name: _solution_and_gradient(each) for name, each in _solvers().items()}
    for lam in size.lams:
        for kind, y in inputs.kinds(lam, size.groups, size.side).items():
            v = np.random.default_rng(0).normal(size=y.shape)
            with jax.enable_x64(True):
                _, expected = exact(jnp.asarray(y, jnp.float64), v, jnp.float64(lam))
                expected = np.asarray(expected)
            for name, program in programs.items():
                z, gradient = program(y, v.astype(np.float32), np.float32(lam))
                case = {"case": "correct", "solver": name, "kind": kind, "lam": lam}
                rows.append(case | _errors(z, gradient, y, lam, expected))
    return rows


def _errors(z, gradient, y, lam: float, expected) -> dict:
    """The largest of any group, relative."""
    scale = 1 + np.abs(y).max((-2, -1)) + abs(lam)
    residual = inputs.true_residual(z, y, lam, P, COUPLING) / scale
    gap = np.abs(np.asarray(gradient) - expected).max((-2, -1))
    error = gap / np.abs(expected).max((-2, -1))
    return {"residual": float(residual.max()), "gradient error": float(error.max())}


def _solution_and_gradient(solver):
    """(y, v, lam) -> (z, dL/dy) with L = v.z."""

    @jax.jit
    def both(y, v, lam):
        def solve(y):
            return ibnn_jax.implicit_bias(y, lam, P, COUPLING, solver=solver)

        z, back = jax.vjp(solve, y)
        return z, back(v)[0]

    return both


class _Training:
    """Seeds of one network, and of its twin, from which they get their weights."""

    LAM = -0.5

    def __init__(self, name: str, seeds: int, size: Size):
        self.name, self.seeds, self.size = name, seeds, size
        count = 40 * size.batch
        images, labels, self.source = training_images(NETWORKS[name][2], count)
        self.batch = (
            jnp.asarray(images[: size.batch]),
            jnp.asarray(labels[: size.batch]),
        )
        self.twin = Network(name, None)
        self.keys = jax.random.split(jax.random.key(0), seeds)
        self.state = jax.jit(jax.vmap(self.twin.start))(self.keys)
        self.twin_step, _ = _compiled(self.twin, self.state, self.batch)
        # Trained, because its activations are what the solver meets.
        for i in range(size.warmup):
            rows = slice(i % 40 * size.batch, (i % 40 + 1) * size.batch)
            self.state = self.twin_step(*self.state, images[rows], labels[rows])

    def measure(self) -> list[dict]:
        """A row for every solver and every width of the activations."""
        twin = _Call(self.twin_step, self.state, self.batch)
        programs = {name: self._implicit(each) for name, each in _solvers().items()}
        rows = []
        for width in self.size.widths:
            calls = {"twin": twin}
            for solver, (program, state, _) in programs.items():
                calls[solver] = _Call(program, _widened(state, width), self.batch)
            times = report.alternating(calls, self.size.repetitions)
            for solver, (*_, found) in programs.items():
                rows.append(
                    {
                        "case": "step",
                        "solver": solver,
                        "network": self.name,
                        "seeds": self.seeds,
                        "batch": self.size.batch,
                        "images": self.source,
                        "lam": self.LAM,
                        "width": width,
                        "step ms": 1e3 * times[solver],
                        "twin ms": 1e3 * times["twin"],
                        "step / twin": times[solver] / times["twin"],
                    }
                    | found
                )
        return rows

    def _implicit(self, solver: ibnn_jax.MeanField):
        """(compiled step, its state, what compiling it took)."""
        network = Network(self.name, self.LAM, solver=solver)
        adopt = jax.vmap(lambda *args: network.adopt(self.twin, *args))
        state = jax.jit(adopt)(self.keys, *self.state)
        program, found = _compiled(network, state, self.batch)
        return program, state, found


@dataclass(frozen=True)
class _Call:
    """A step that is ready to run."""

    program: jax.stages.Compiled
    state: tuple
    batch: tuple

    def __call__(self):
        return self.program(*self.state, *self.batch)


def _over_seeds(network: Network):
    return jax.vmap(network.step, (0, 0, None, None))


def _compiled(network: Network, state, batch) -> tuple[jax.stages.Compiled, dict]:
    """(the step of all seeds, seconds that XLA took and memory that it asks for)."""
    lowered = jax.jit(_over_seeds(network)).lower(*state, *batch)
    start = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - start
    temporary = program.memory_analysis().temp_size_in_bytes
    return program, {"compile s": seconds, "temporary MB": temporary / 1e6}


def _widened(state, width: float):
    """The state with every convolution's kernel, and so its activations, scaled."""

    def scale(path, x):
        return x * width if "conv" in jax.tree_util.keystr(path) else x

    params, rest = state
    return jax.tree_util.tree_map_with_path(scale, params), rest


def _draw(figure, rows):
    axis = figure.subplots()
    steps = [row for row in rows if row["case"] == "step"]
    names = [
        f"{r['network']}\n{r['seeds']} seed(s), width {r['width']:g}, {r['solver']}"
        for r in steps
    ]
    axis.bar(names, [r["step / twin"] for r in steps])
    axis.axhline(2, color="grey", lw=0.8)
    axis.set(ylabel="times the standard twin")
    axis.tick_params(axis="x", labelsize=6, rotation=45)
