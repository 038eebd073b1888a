"""The Discussion's multistability: several solutions past the uniqueness bound.

Which of them is found depends on where the solver starts, and so on the past.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.experiments.harness.results import Point, Row, column, pick, rounded, unique
from train.experiments.harness.statistics import curve
from train.experiments.harness.study import Study

if TYPE_CHECKING:
    from ibnn_jax import Dense, Uniform, Window

TITLE = "Several solutions past the uniqueness bound (Discussion)"
PAPER = (
    "above the threshold several solutions may coexist, as in models of multistable "
    "perception."
)
SIZE = (10, 4)
P = 10.0
SIDE = 6  # of the square of neurons
LAMS = (0.02, 0.04, 0.06, 0.09, 0.12, 0.2, 0.4)
PATH = (0.03, 0.2)  # below and past the bound
STARTS, QUICK_STARTS = 64, 16
SAME = 1e-4  # solutions this close count as one
TOLERANCE, STEPS = 1e-9, 5000  # of the descent; all arithmetic is in float64
# Everyone against everyone; two rivals, as in perception; neighbours only.
COUPLINGS = {"uniform": "#3b6fb6", "populations": "#d1495b", "window": "#66a182"}


def points(study: Study) -> list[Point]:
    return [
        {"part": part, "coupling": coupling, "lam": lam}
        for part, lams in (("starts", LAMS), ("path", PATH))
        for coupling in COUPLINGS
        for lam in lams
    ]


def measure(study: Study, point: Point) -> list[Row]:
    import jax

    measured = _from_many_starts if point["part"] == "starts" else _along_a_path
    rows = []
    with jax.enable_x64(True):
        for seed in range(study.options.seeds):
            rows += measured(study, seed, point["coupling"], point["lam"])
    return rows


def pattern(coupling: str) -> np.ndarray:
    """The state that a coupling supports, +1 and -1, [SIDE, SIDE].

    Two halves, or a checkerboard where only neighbours repel each other.
    """
    rows, columns = np.indices((SIDE, SIDE))
    if coupling == "window":
        return np.where((rows + columns) % 2 == 0, 1.0, -1.0)
    return np.where(rows < SIDE // 2, 1.0, -1.0)


def _input(seed: int) -> np.ndarray:
    """A weak random input to one group of neurons, [SIDE * SIDE]."""
    return 0.02 * np.random.default_rng(seed).normal(size=SIDE * SIDE)


@functools.cache
def _coupling(name: str) -> "Dense | Uniform | Window":
    """The coupling of the neurons, along the last axis or the last two."""
    from ibnn_jax import Dense, Uniform, Window

    if name == "uniform":
        return Uniform((-1,))
    if name == "window":
        return Window((3, 3), axes=(-2, -1))
    halves = pattern(name).ravel()
    return Dense((halves[:, None] != halves) / (halves.size / 2))


@functools.cache
def _descent(name: str) -> Callable:
    """(y [groups, n], lam, start [groups, n]) -> Solution: descent of the energy.

    It finds stable solutions only.
    """
    import ibnn_jax

    coupling = _coupling(name)
    shape = (-1, SIDE, SIDE) if name == "window" else (-1, SIDE * SIDE)

    def descend(y, lam, start):
        return ibnn_jax.solve(
            y.reshape(shape),
            lam,
            P,
            coupling,
            solver=ibnn_jax.GradientDescent(),
            start=start.reshape(shape),
            tol=TOLERANCE,
            max_steps=STEPS,
        )

    return descend


def _descend(
    name: str, y: np.ndarray, lam: float, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The solutions that descent reaches from the starts, and whether it got there.

    y, start: [groups, n]. Returns: z [groups, n], bool [groups].
    """
    solution = _descent(name)(y, lam, start)
    z = np.asarray(solution.value).reshape(y.shape)
    return z, np.asarray(solution.stats.converged).reshape(len(y))


def _from_many_starts(study: Study, seed: int, name: str, lam: float) -> list[Row]:
    """Distinct stable solutions from random starts, and what the solver reports."""
    import ibnn_jax

    count = QUICK_STARTS if study.options.quick else STARTS
    y = np.repeat(_input(seed)[None], count, 0)
    offsets = np.random.default_rng(100 + seed).uniform(-1, 1, y.shape)
    z, converged = _descend(name, y, lam, y + lam * offsets)
    coupling = _coupling(name)
    one = y[0].reshape((SIDE, SIDE) if name == "window" else (SIDE * SIDE,))
    code = ibnn_jax.solve(one, lam, P, coupling).result
    return [
        {"seed": seed, "solutions": len(_distinct(z[converged]))}
        | rounded(converged=converged.mean())
        | {"code": int(code)}
        | rounded(bound=ibnn_jax.uniqueness_bound(P, coupling))
    ]


def _distinct(solutions: np.ndarray) -> list[np.ndarray]:
    """The solutions without those that repeat an earlier one."""
    distinct = []
    for candidate in solutions:
        if all(np.abs(candidate - other).max() >= SAME for other in distinct):
            distinct.append(candidate)
    return distinct


def _along_a_path(study: Study, seed: int, name: str, lam: float) -> list[Row]:
    """An input along the pattern goes from + to - and back.

    Each solve starts from the last solution.
    """
    direction = pattern(name).reshape(1, -1)
    there = np.linspace(0.4, -0.4, 17)
    z, rows = None, []
    for step, field in enumerate(np.concatenate([there, there[::-1]])):
        y = _input(seed)[None] + field * direction
        z, converged = _descend(name, y, lam, y if z is None else z)
        overlap = (z * direction).mean()
        rows.append(
            {"seed": seed, "step": step}
            | rounded(field=field, overlap=overlap, converged=converged.all())
        )
    return rows


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    left, right = figure.subplots(1, 2)
    for coupling, colour in COUPLINGS.items():
        starts = pick(rows, part="starts", coupling=coupling)
        _draw_solutions(left, starts, coupling, colour)
        path = pick(rows, part="path", coupling=coupling, lam=PATH[1], seed=0)
        x, y = column(path, "field"), column(path, "overlap")
        right.plot(x, y, marker=".", color=colour, label=coupling)
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


def _draw_solutions(
    axis: Axes, starts: Sequence[Row], coupling: str, colour: str
) -> None:
    """The median number of solutions over lam, with the range of the seeds."""
    x, middle, low, high = curve(starts, "lam", "solutions", coverage=1)
    axis.plot(x, middle, marker=".", color=colour, label=coupling)
    axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    axis.axvline(starts[0]["bound"], color=colour, linestyle=":", linewidth=1)


def loop_size(rows: Sequence[Row], coupling: str, lam: float) -> float:
    """The largest gap between the way there and the way back, median of the seeds."""
    gaps = []
    for seed in unique(rows, "seed"):
        path = pick(rows, part="path", coupling=coupling, lam=lam, seed=seed)
        there, back = np.split(column(path, "overlap"), 2)
        gaps.append(np.abs(there - back[::-1]).max())
    return float(np.median(gaps))


def verdict(rows: Sequence[Row]) -> str:
    parts = []
    for coupling in COUPLINGS:
        starts = pick(rows, part="starts", coupling=coupling)
        bound = starts[0]["bound"]
        lams, solutions, *_ = curve(starts, "lam", "solutions", coverage=1)
        below, most = solutions[lams < bound].max(), solutions.argmax()
        right = all((row["code"] == 1) == (row["lam"] >= bound) for row in starts)
        loops = " and ".join(
            f"{loop_size(rows, coupling, lam):.3f} at lam {lam:g}" for lam in PATH
        )
        parts.append(
            f"{coupling} (bound {bound:g}): {below:g} solution below the bound, "
            f"{solutions[most]:g} at lam {lams[most]:g} (median over seeds); the "
            f"result code tells {'at every' if right else 'not at every'} lam; "
            f"hysteresis {loops}"
        )
    return ". ".join(parts) + ". There are at most as many solutions as starts."
