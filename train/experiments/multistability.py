"""The Discussion's multistability: lam past the uniqueness bound has several solutions, and which one is found depends on the past."""

import dataclasses
import functools

import numpy as np

from train.experiments import results

TITLE = "Several solutions past the uniqueness bound (Discussion)"
PAPER = "above the threshold several solutions may coexist, as in models of multistable perception."
SIZE = (10, 4)
P, SIDE = 10.0, 6  # neurons: SIDE * SIDE
LAMS = (0.02, 0.04, 0.06, 0.09, 0.12, 0.2, 0.4)
PATH = (0.03, 0.2)  # below and past the bound
# Everyone against everyone; two rivals, as in perception; neighbours only.
COUPLINGS = ("uniform", "populations", "window")


def points(study):
    parts = [
        {"part": "starts", "coupling": c, "lam": lam} for c in COUPLINGS for lam in LAMS
    ]
    return parts + [
        {"part": "path", "coupling": c, "lam": lam} for c in COUPLINGS for lam in PATH
    ]


def measure(study, point):
    import jax

    with jax.enable_x64(True):
        f = _from_many_starts if point["part"] == "starts" else _along_a_path
        return [
            row
            for seed in range(study.options.seeds)
            for row in f(study, seed, point["coupling"], point["lam"])
        ]


def pattern(coupling):
    """The state that the coupling supports: two halves, or a checkerboard where only neighbours repel each other."""
    rows, columns = np.indices((SIDE, SIDE))
    return np.where(
        (rows < SIDE // 2) if coupling != "window" else (rows + columns) % 2 == 0,
        1.0,
        -1.0,
    )


def _problem(seed, coupling, lam):
    """A weak random input to one group of neurons, its coupling, and both as a Problem."""
    from ibnn_jax import Dense, Uniform, Window
    from ibnn_jax.problem import bind

    halves = pattern("populations").ravel()
    rivals = (halves[:, None] != halves) / (halves.size / 2)
    kind = {
        "uniform": Uniform((-2, -1)),
        "populations": Dense(rivals),
        "window": Window((3, 3), axes=(-2, -1)),
    }[coupling]
    y = 0.02 * np.random.default_rng(seed).normal(
        size=halves.shape if coupling == "populations" else (SIDE, SIDE)
    )
    return y, kind, bind(y, float(lam), P, kind)[0]


@functools.cache
def _solver():
    import jax

    from ibnn_jax import GradientDescent
    from ibnn_jax.iterate import iterate

    return jax.jit(
        lambda problem, start: iterate(
            GradientDescent(), problem, start, tol=1e-9, max_steps=5000
        )
    )


def _descend(problem, start):
    """The stable solutions that descent of the energy reaches from a start [G, n], and whether it got there."""
    solution = _solver()(problem, start)
    return np.asarray(solution.value), np.asarray(solution.stats.converged)


def _from_many_starts(study, seed, coupling, lam):
    """Distinct stable solutions found from random starts, and what the default solver says of the problem."""
    import ibnn_jax

    count = 16 if study.options.quick else 64
    y, kind, problem = _problem(seed, coupling, lam)
    repeat = lambda x: np.repeat(np.asarray(x), count, 0)
    many = dataclasses.replace(
        problem, y=repeat(problem.y), lam=repeat(problem.lam), p=repeat(problem.p)
    )
    start = many.y + lam * np.random.default_rng(100 + seed).uniform(
        -1, 1, many.y.shape
    )
    z, converged = _descend(many, start)
    distinct = []
    for candidate in z[converged]:
        if not any(np.abs(candidate - other).max() < 1e-4 for other in distinct):
            distinct.append(candidate)
    result = ibnn_jax.solve(y, lam, P, kind).result
    return [
        {
            "seed": seed,
            "solutions": len(distinct),
            "converged": round(float(converged.mean()), 6),
            "code": int(result),
            "bound": round(float(ibnn_jax.uniqueness_bound(P, kind)), 6),
        }
    ]


def _along_a_path(study, seed, coupling, lam):
    """An input along the pattern goes from + to - and back, each solve starting from the last solution."""
    _, _, problem = _problem(seed, coupling, lam)
    direction, z, rows = pattern(coupling).reshape(1, -1), None, []
    there = np.linspace(0.4, -0.4, 17)
    for step, field in enumerate(np.concatenate([there, there[::-1]])):
        now = dataclasses.replace(problem, y=problem.y + field * direction)
        z, converged = _descend(now, now.y if z is None else z)
        rows.append(
            {
                "seed": seed,
                "step": step,
                "field": round(float(field), 6),
                "overlap": round(float((z * direction).mean()), 6),
                "converged": float(converged.all()),
            }
        )
    return rows


def draw(figure, rows):
    left, right = figure.subplots(1, 2)
    for coupling, colour in zip(COUPLINGS, ("#3b6fb6", "#d1495b", "#66a182")):
        mine = results.pick(rows, part="starts", coupling=coupling)
        x, middle, low, high = results.curve(mine, "lam", "solutions", 1)
        left.plot(x, middle, marker=".", color=colour, label=coupling)
        left.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        left.axvline(mine[0]["bound"], color=colour, linestyle=":", linewidth=1)
        path = results.pick(rows, part="path", coupling=coupling, lam=PATH[1], seed=0)
        right.plot(
            results.column(path, "field"),
            results.column(path, "overlap"),
            marker=".",
            color=colour,
            label=coupling,
        )
    left.set(
        xlabel="lam (dotted: the uniqueness bound)",
        ylabel="distinct solutions from random starts",
        yscale="log",
    )
    right.set(
        xlabel="input along a pattern, from + to - and back",
        ylabel="overlap of z with the pattern",
        title=f"lam {PATH[1]:g}",
    )
    left.legend(fontsize=8)


def loop_size(rows, coupling, lam):
    """The largest gap between the way there and the way back, the median over the seeds."""
    gaps = []
    for seed in results.unique(rows, "seed"):
        overlap = results.column(
            results.pick(rows, part="path", coupling=coupling, lam=lam, seed=seed),
            "overlap",
        )
        half = len(overlap) // 2
        gaps.append(np.abs(overlap[:half] - overlap[half:][::-1]).max())
    return float(np.median(gaps))


def verdict(rows):
    parts = []
    for coupling in COUPLINGS:
        starts = results.pick(rows, part="starts", coupling=coupling)
        bound = starts[0]["bound"]
        lams, solutions, *_ = results.curve(starts, "lam", "solutions", 1)
        below, most = solutions[lams < bound].max(), solutions.argmax()
        right = all((row["code"] == 1) == (row["lam"] >= bound) for row in starts)
        loops = [f"{loop_size(rows, coupling, lam):.3f} at lam {lam:g}" for lam in PATH]
        parts.append(
            f"{coupling} (bound {bound:g}): {below:g} solution below the bound, {solutions[most]:g} at lam {lams[most]:g} (median "
            f"over seeds); the result code tells {'at every' if right else 'not at every'} lam; hysteresis {' and '.join(loops)}"
        )
    return ". ".join(parts) + "."
