"""Who converges, in how many steps and how fast: every solver and its peers."""

import jax
import jax.numpy as jnp
import numpy as np

import ibnn_jax
from benchmarks import inputs, peers, report

P = 10.0
TOL = 1e-5
SIZES = {  # groups, side, lams, input kinds, max_steps, repetitions
    "tiny": (2, 7, (-0.5,), ("trained",), 30, 1),
    "quick": (2, 7, (-0.5, 0.08), ("trained",), 40, 1),
    "full": (4, 14, inputs.LAMS, ("random", "wide", "ties", "trained"), 100, 1),
}
OURS = {
    "Picard": ibnn_jax.Picard(),
    "GradientDescent": ibnn_jax.GradientDescent(),
    "Anderson": ibnn_jax.Anderson(),
    "Broyden": ibnn_jax.Broyden(),
    "Newton": ibnn_jax.Newton(),
    "MeanField": ibnn_jax.MeanField(cells=(64, 256)),
}
COLUMNS = [
    "coupling",
    "input",
    "lam",
    "solver",
    "converged",
    "steps",
    "milliseconds",
    "residual",
]


def run(size: str) -> report.Report:
    groups, side, lams, kinds, max_steps, repetitions = SIZES[size]
    others = peers.available()
    rows = []
    couplings = inputs.couplings(side)
    for name in ("Uniform",) if size == "tiny" else couplings:
        coupling, shape = couplings[name]
        calls = _calls(name, coupling, max_steps, others)
        for lam in lams:
            for kind in kinds:
                y = inputs.kinds(lam, groups, side)[kind]
                y = jnp.asarray(y.reshape(groups, *shape))
                case = {"coupling": name, "input": kind, "lam": lam}
                case |= {"n": int(np.prod(shape)), "groups": groups}
                for solver, call in calls.items():
                    found = _measure(call, y, lam, coupling, repetitions)
                    rows.append(case | {"solver": solver} | found)
        print(f"{name}: done", flush=True)
    summary = _summary(rows)
    print(report.table(summary, list(summary[0])))
    lam = lams[min(1, len(lams) - 1)]
    curves = _curves(lam, groups, side, max_steps)
    return report.Report(
        rows, COLUMNS, lambda figure: _draw(figure, summary, lam, curves)
    )


def _calls(name, coupling, max_steps, others) -> dict:
    """solver -> (y, lam) -> (z, steps), of ours and of what else fits this coupling."""
    compiled, eager = others
    ours = {k: v for k, v in OURS.items() if k != "MeanField" or name == "Uniform"}
    calls = {k: _ours(solver, coupling, max_steps) for k, solver in ours.items()}
    fitting = compiled | (eager if name != "Window" else {})
    return calls | {k: make(P, coupling, TOL, max_steps) for k, make in fitting.items()}


def _ours(solver, coupling, max_steps):
    @jax.jit
    def call(y, lam):
        found = ibnn_jax.solve(
            y, lam, P, coupling, solver=solver, tol=TOL, max_steps=max_steps
        )
        return found.value, found.stats.steps

    return call


def _measure(call, y, lam, coupling, repetitions) -> dict:
    """Steps, time, true residual, and the share of groups within 10 tolerances."""
    lam_traced = jnp.float32(lam)  # one compilation for all of them
    z, steps = jax.block_until_ready(call(y, lam_traced))
    residual = inputs.true_residual(z, y, lam, P, coupling)
    scale = 1 + np.abs(y).reshape(len(y), -1).max(1) + abs(lam)
    seconds = report.seconds(call, y, lam_traced, repetitions=repetitions)
    return {
        "converged": float((residual <= 10 * TOL * scale).mean()),  # NaN is not
        "steps": int(np.max(steps)),
        "milliseconds": 1e3 * seconds,
        "residual": float(np.max(residual)),
    }


def _curves(lam, groups, side, max_steps) -> dict[str, list[float]]:
    """solver -> largest residual of any group after each step, Uniform, trained y."""
    coupling, shape = inputs.couplings(side)["Uniform"]
    y = jnp.asarray(inputs.kinds(lam, groups, side)["trained"].reshape(groups, *shape))
    curves = {}
    for name, solver in OURS.items():
        if name != "MeanField":  # it has no trace
            found = ibnn_jax.solve(
                y,
                lam,
                P,
                coupling,
                solver=solver,
                tol=1e-7,
                max_steps=max_steps,
                trace=True,
            )
            curves[name] = np.asarray(found.stats.trace).max(0).tolist()
    return curves


def _summary(rows) -> list[dict]:
    """Per coupling and solver: share of converged groups over all cases, medians."""
    result = []
    for key in dict.fromkeys((r["coupling"], r["solver"]) for r in rows):
        mine = [r for r in rows if (r["coupling"], r["solver"]) == key]
        result.append(
            {
                "coupling": key[0],
                "solver": key[1],
                "cases": len(mine),
                "converged %": 100 * float(np.mean([r["converged"] for r in mine])),
                "median steps": float(np.median([r["steps"] for r in mine])),
                "median ms": float(np.median([r["milliseconds"] for r in mine])),
            }
        )
    return result


def _draw(figure, summary, lam, curves):
    left, right = figure.subplots(1, 2)
    for name, curve in curves.items():
        left.semilogy(np.maximum(curve, 1e-9), label=name)
    left.set(
        xlabel="steps",
        ylabel="largest residual of any group",
        title=f"trained activations, Uniform, lam = {lam}",
        xscale="symlog",
    )
    left.legend(fontsize=7)
    uniform = [s for s in summary if s["coupling"] == "Uniform"]
    right.barh([s["solver"] for s in uniform], [s["converged %"] for s in uniform])
    right.set(xlabel="% of groups converged, all cases, Uniform", xlim=(0, 100))
    right.tick_params(labelsize=7)
