"""The Discussion's multistability: lam past the uniqueness bound has several solutions, and which one is found depends on the past."""

import numpy as np

from train.experiments import results

TITLE = "Several solutions past the uniqueness bound (Discussion)"
PAPER = "above the threshold several solutions may coexist, as in models of multistable perception."
SIZE = (10, 4)
P, NEURONS = 10.0, 64
LAMS = (0.02, 0.06, 0.09, 0.12, 0.16, 0.2, 0.3, 0.4)


def points(study):
    return [{"part": "starts", "lam": lam} for lam in LAMS] + [{"part": "path", "lam": ""}]


def measure(study, point):
    import jax

    with jax.enable_x64(True):
        return _from_many_starts(study, point["lam"]) if point["part"] == "starts" else _along_a_path(study)


def _problem(seed, lam):
    """A weak random input to one group, and its Problem."""
    from ibnn_jax import Uniform
    from ibnn_jax.problem import bind

    y = 0.02 * np.random.default_rng(seed).normal(size=(1, NEURONS))
    return bind(y, float(lam), P, Uniform((-1,)))[0]


def _descend(problem, start):
    """The stable solution that descent of the energy reaches from a start [G, n], and whether it converged."""
    import jax

    from ibnn_jax import GradientDescent
    from ibnn_jax.iterate import iterate

    solution = jax.jit(lambda problem, start: iterate(GradientDescent(), problem, start, tol=1e-9, max_steps=5000))(problem, start)
    return np.asarray(solution.value), np.asarray(solution.stats.converged), np.asarray(solution.result)


def _from_many_starts(study, lam):
    """Distinct stable solutions found from random starts, and what the default solver says."""
    import dataclasses

    import ibnn_jax

    rows, count = [], 16 if study.options.quick else 64
    for seed in range(study.options.seeds):
        problem = _problem(seed, lam)
        repeat = lambda x: np.repeat(np.asarray(x), count, 0)
        many = dataclasses.replace(problem, y=repeat(problem.y), lam=repeat(problem.lam), p=repeat(problem.p))
        start = many.y + float(lam) * np.random.default_rng(100 + seed).uniform(-1, 1, many.y.shape)
        z, converged, _ = _descend(many, start)
        kept = z[converged]
        distinct = []
        for candidate in kept:
            if not any(np.abs(candidate - other).max() < 1e-4 for other in distinct):
                distinct.append(candidate)
        default = ibnn_jax.solve(problem.y, float(lam), P, ibnn_jax.Uniform((-1,)))
        rows.append({"seed": seed, "solutions": len(distinct), "converged": round(float(converged.mean()), 6),
                     "spread": round(float(np.ptp(z, axis=1).max()), 6), "code": int(default.result[0])})
    return rows


def _along_a_path(study):
    """The input along a pattern goes from + to - and back, each solve starting from the last solution, below and past the bound.

    A loop opens where both signs are stable.
    """
    import dataclasses

    rows = []
    fields = np.concatenate([np.linspace(0.3, -0.3, 25), np.linspace(-0.3, 0.3, 25)])
    for seed in range(study.options.seeds):
        pattern = np.sign(np.random.default_rng(200 + seed).normal(size=(1, NEURONS)))
        for lam in (LAMS[1], LAMS[-1]):
            z = None
            for step, field in enumerate(fields):
                problem = _problem(seed, lam)
                problem = dataclasses.replace(problem, y=problem.y + field * pattern)
                z, converged, _ = _descend(problem, np.asarray(problem.y) if z is None else z)
                overlap = float((z * pattern).mean())
                rows.append({"seed": seed, "at": lam, "step": step, "field": round(float(field), 6), "overlap": round(overlap, 6),
                             "converged": float(converged.all())})
    return rows


def draw(figure, rows):
    left, right = figure.subplots(1, 2)
    starts = results.pick(rows, part="starts")
    x, middle, low, high = results.curve(starts, "lam", "solutions", 1)
    left.plot(x, middle, marker=".", color="#3b6fb6")
    left.fill_between(x, low, high, color="#3b6fb6", alpha=0.2, linewidth=0)
    left.axvline(1 / P, color="gray", linestyle=":", label="uniqueness bound 1/p")
    left.set(xlabel="lam", ylabel="distinct solutions from random starts", yscale="log")
    left.legend(fontsize=8)
    for at, colour in zip(results.unique(results.pick(rows, part="path"), "at"), ("#3b6fb6", "#d1495b")):
        mine = results.pick(rows, part="path", at=at, seed=0)
        right.plot(results.column(mine, "field"), results.column(mine, "overlap"), marker=".", color=colour, label=f"lam {at:g}")
    right.set(xlabel="input along a pattern", ylabel="overlap of z with the pattern", title="input from + to - and back")
    right.legend(fontsize=8)


def _loop(rows, at):
    """The largest gap between the way there and the way back, over the seeds."""
    gaps = []
    for seed in results.unique(rows, "seed"):
        overlap = results.column(results.pick(rows, at=at, seed=seed), "overlap")
        half = len(overlap) // 2
        gaps.append(np.abs(overlap[:half] - overlap[half:][::-1]).max())
    return float(np.median(gaps))


def verdict(rows):
    starts, path = results.pick(rows, part="starts"), results.pick(rows, part="path")
    lams, solutions, *_ = results.curve(starts, "lam", "solutions", 1)
    below = max(s for lam, s in zip(lams, solutions) if lam < 1 / P)
    codes = {lam: {int(row["code"]) for row in results.pick(starts, lam=lam)} for lam in lams}
    flagged = all(codes[lam] == {1} for lam in lams if lam >= 1 / P) and all(codes[lam] == {0} for lam in lams if lam < 1 / P)
    loops = ", ".join(f"{_loop(path, at):.3f} at lam {at:g}" for at in results.unique(path, "at"))
    return (f"Below 1/p random starts end in {below:g} solution; at lam {lams[-1]:g} they end in {solutions[-1]:g} distinct ones (median over seeds). "
            f"The result code tells: {'yes, at every lam' if flagged else f'not at every lam: {codes}'}. Hysteresis (largest gap in overlap between "
            f"the way there and back): {loops}.")
