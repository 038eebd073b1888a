"""What more cells buy in MeanField: error of z and of the gradients, and time."""

import jax
import jax.numpy as jnp
import numpy as np

import ibnn_jax
from benchmarks import inputs, report

P = 10.0
COUPLING = ibnn_jax.Uniform((-2, -1))
SIZES = {  # groups, side, cells, lams, repetitions
    "tiny": (4, 14, (8, 16), (-0.5,), 1),
    "quick": (48, 28, (8, 16), (-0.5, 0.08), 5),
    "full": (48, 28, (8, 12, 16, 24, 32, 64, 128), (-2.0, -0.5, -0.1, 0.03, 0.08), 10),
}


def run(size: str) -> report.Report:
    groups, side, cells, lams, repetitions = SIZES[size]
    reference = _both(ibnn_jax.Newton())
    calls = {m: _both(_one_attempt(m), tol=1e-4) for m in cells}
    rows = []
    for lam in lams:
        for kind in ("trained", "random"):
            y = jnp.asarray(inputs.kinds(lam, groups, side)[kind])
            v = jnp.asarray(np.random.default_rng(2).normal(size=y.shape), y.dtype)
            exact = inputs.in_float64(reference, y, v, lam)
            for count, both in calls.items():
                case = {"input": kind, "lam": lam, "cells": count}
                rows.append(case | _measure(both, y, v, lam, exact, repetitions))
    return report.Report(rows, list(rows[0]), lambda figure: _draw(figure, rows))


def _one_attempt(cells: int) -> ibnn_jax.MeanField:
    """These cells alone: no second attempt, no pairwise finish."""
    return ibnn_jax.MeanField(cells=(cells,), pairwise_max_size=0)


def _both(solver, tol=None):
    """z, dL/dy and dL/dlam for L = v . z, jitted, called with (y, v, lam)."""

    @jax.jit
    def call(y, v, lam):
        def solve(y, lam):
            return ibnn_jax.implicit_bias(y, lam, P, COUPLING, solver=solver, tol=tol)

        z, back = jax.vjp(solve, y, lam)
        return z, *back(v)

    return call


def _measure(both, y, v, lam, exact, repetitions) -> dict:
    arguments = (y, v, jnp.float32(lam))
    z, dy, dlam = (np.asarray(a, np.float64) for a in both(*arguments))
    # A group that misses the tolerance gets NaN gradients here, and is counted.
    told = np.isfinite(dy).all((1, 2))
    error_dy = None
    if told.any():
        error = np.linalg.norm((dy - exact[1])[told])
        error_dy = float(error / np.linalg.norm(exact[1][told]))
    seconds = report.seconds(both, *arguments, repetitions=repetitions)
    return {
        "residual": float(inputs.true_residual(z, y, lam, P, COUPLING).max()),
        "error z": float(np.abs(z - exact[0]).max()),
        "declined %": 100 * float(1 - told.mean()),
        "error dy": error_dy,
        "error dlam": float(abs(dlam - exact[2]) / abs(exact[2])),
        "milliseconds": 1e3 * seconds,
    }


def _draw(figure, rows):
    for axis, kind in zip(figure.subplots(1, 2, sharey=True), ("trained", "random")):
        for lam in dict.fromkeys(r["lam"] for r in rows):
            mine = [r for r in rows if (r["lam"], r["input"]) == (lam, kind)]
            cells = [r["cells"] for r in mine]
            residuals = [r["residual"] for r in mine]
            axis.loglog(cells, residuals, "o-", label=f"lam = {lam}")
        axis.axhline(1e-3, color="grey", lw=0.8)
        axis.set(xlabel="cells", ylabel="largest true residual", title=f"{kind} y")
    axis.legend(fontsize=7)
