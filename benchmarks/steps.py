"""How many steps from a cold start: trained activations, tol 1e-5 in float32."""

import jax
import jax.numpy as jnp
import numpy as np

import ibnn_jax
from benchmarks import inputs, report

TOL = 1e-5
COUPLING = ibnn_jax.Uniform((-2, -1))
NEGATIVE = (-20.0, -5.0, -2.0, -0.5, -0.1)
POSITIVE = (0.3, 0.6, 0.9)  # times 1 / p
SOLVERS = {
    "Newton": ibnn_jax.Newton(),
    "MeanField": ibnn_jax.MeanField(cells=(64, 256)),
}
SIZES = {  # groups, side, p
    "tiny": (2, 7, (10.0,)),
    "quick": (6, 14, (10.0,)),
    "full": (48, 28, (1.0, 3.0, 10.0, 30.0)),
}


def run(size: str) -> report.Report:
    groups, side, slopes = SIZES[size]
    calls = {name: _call(solver) for name, solver in SOLVERS.items()}
    rows = []
    for p in slopes:
        for lam in (*NEGATIVE, *(share / p for share in POSITIVE)):
            y = jnp.asarray(inputs.kinds(lam, groups, side)["trained"])
            for name, call in calls.items():
                z, stats = call(y, jnp.float32(lam), jnp.float32(p))
                residual = inputs.true_residual(z, y, lam, p, COUPLING)
                rows.append(
                    {
                        "solver": name,
                        "p": p,
                        "lam": lam,
                        "steps, most": int(stats.steps.max()),
                        "steps, mean": float(stats.steps.mean()),
                        "converged %": 100 * float(stats.converged.mean()),
                        "residual": float(np.max(residual)),
                    }
                )
    return report.Report(rows, list(rows[0]), lambda figure: _draw(figure, rows))


def _call(solver):
    @jax.jit
    def call(y, lam, p):
        found = ibnn_jax.solve(y, lam, p, COUPLING, solver=solver, tol=TOL)
        return found.value, found.stats

    return call


def _draw(figure, rows):
    for axis, solver in zip(figure.subplots(1, len(SOLVERS), sharey=True), SOLVERS):
        for p in dict.fromkeys(r["p"] for r in rows):
            mine = [r for r in rows if (r["solver"], r["p"]) == (solver, p)]
            shares = [r["lam"] * p for r in mine]
            steps = [r["steps, most"] for r in mine]
            axis.plot(shares, steps, "o-", label=f"p = {p:g}")
        axis.axhline(8, color="grey", lw=0.8)
        axis.set(
            xlabel="lam p", xscale="symlog", title=f"{solver}: most steps of any group"
        )
    axis.legend(fontsize=7)
