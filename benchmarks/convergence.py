"""Who converges, in how many steps and how fast: every solver and its peers on the same y."""

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
    "Picard": ibnn_jax.Picard(), "GradientDescent": ibnn_jax.GradientDescent(), "Anderson": ibnn_jax.Anderson(),
    "Broyden": ibnn_jax.Broyden(), "Newton": ibnn_jax.Newton(), "MeanField": ibnn_jax.MeanField(cells=(64, 256)),
}  # fmt: skip


def run(size):
    groups, side, lams, kinds, max_steps, repetitions = SIZES[size]
    compiled, eager = peers.available()
    rows, curves = [], {}
    for coupling_name, (coupling, shape) in inputs.couplings(side).items():
        ours = {
            k: v
            for k, v in OURS.items()
            if k != "MeanField" or coupling_name == "Uniform"
        }
        calls = {
            name: _ours(solver, coupling, max_steps) for name, solver in ours.items()
        }
        others = compiled | (eager if coupling_name != "Window" else {})
        calls |= {
            name: make(P, coupling, TOL, max_steps) for name, make in others.items()
        }
        for lam in lams:
            for kind, y in inputs.kinds(lam, groups, side).items():
                if kind not in kinds:
                    continue
                y = jnp.asarray(y.reshape(groups, *shape))
                case = {
                    "coupling": coupling_name,
                    "input": kind,
                    "lam": lam,
                    "n": int(np.prod(shape)),
                    "groups": groups,
                }
                rows += [
                    case
                    | {"solver": name}
                    | _measure(call, y, lam, coupling, repetitions)
                    for name, call in calls.items()
                ]
                if (coupling_name, kind) == ("Uniform", "trained") and lam == lams[
                    min(1, len(lams) - 1)
                ]:
                    curves = {"lam": lam} | {
                        k: _trace(s, y, lam, coupling, max_steps)
                        for k, s in ours.items()
                        if k != "MeanField"
                    }
        print(f"{coupling_name}: done", flush=True)
    summary = _summary(rows)
    print(report.table(summary, list(summary[0])))
    columns = [
        "coupling",
        "input",
        "lam",
        "solver",
        "converged",
        "steps",
        "milliseconds",
        "residual",
    ]
    return report.Report(rows, columns, lambda figure: _draw(figure, summary, curves))


def _ours(solver, coupling, max_steps):
    @jax.jit
    def call(y, lam):
        found = ibnn_jax.solve(
            y, lam, P, coupling, solver=solver, tol=TOL, max_steps=max_steps
        )
        return found.value, found.stats.steps

    return call


def _measure(call, y, lam, coupling, repetitions):
    """Steps, time and the true residual; converged counts the groups within 10 times the tolerance asked for."""
    lam_traced = jnp.float32(lam)  # one compilation for all of them
    z, steps = jax.block_until_ready(call(y, lam_traced))
    residual = inputs.true_residual(z, y, lam, P, coupling)
    scale = 1 + np.abs(y).reshape(len(y), -1).max(1) + abs(lam)
    return {
        "converged": float((residual <= 10 * TOL * scale).mean()),  # NaN is not
        "steps": int(np.max(steps)),
        "milliseconds": 1e3
        * report.seconds(call, y, lam_traced, repetitions=repetitions),
        "residual": float(np.max(residual)),
    }


def _trace(solver, y, lam, coupling, max_steps):
    found = ibnn_jax.solve(
        jnp.asarray(y),
        lam,
        P,
        coupling,
        solver=solver,
        tol=1e-7,
        max_steps=max_steps,
        trace=True,
    )
    return np.asarray(found.stats.trace).max(0).tolist()


def _summary(rows):
    """Per coupling and solver: share of groups that converged over all cases, and medians."""
    result = []
    for key in dict.fromkeys((r["coupling"], r["solver"]) for r in rows):
        mine = [r for r in rows if (r["coupling"], r["solver"]) == key]
        result.append({
            "coupling": key[0], "solver": key[1], "cases": len(mine), "converged %": 100 * float(np.mean([r["converged"] for r in mine])),
            "median steps": float(np.median([r["steps"] for r in mine])), "median ms": float(np.median([r["milliseconds"] for r in mine])),
        })  # fmt: skip
    return result


def _draw(figure, summary, curves):
    left, right = figure.subplots(1, 2)
    lam = curves.pop("lam", None)
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
