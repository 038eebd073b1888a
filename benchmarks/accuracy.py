"""What the knob of MeanField buys: error of z and of the gradients, and time, against the number of cells."""

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


def run(size):
    groups, side, cells, lams, repetitions = SIZES[size]
    exactly = _both(ibnn_jax.Newton())
    calls = {
        m: _both(ibnn_jax.MeanField(cells=(m,), pairwise_max_size=1), tol=1e-4) for m in cells
    }  # no second attempt: these cells alone
    rows = []
    for lam in lams:
        for kind in ("trained", "random"):
            y = jnp.asarray(inputs.kinds(lam, groups, side)[kind])
            v = jnp.asarray(np.random.default_rng(2).normal(size=y.shape), y.dtype)
            with jax.enable_x64(True):
                exact = [
                    np.asarray(a)
                    for a in exactly(
                        *(jnp.asarray(np.asarray(a), jnp.float64) for a in (y, v, lam))
                    )
                ]
            for count, both in calls.items():
                call = lambda y, v: both(y, v, jnp.float32(lam))
                found = [np.asarray(a, np.float64) for a in call(y, v)]
                told = np.isfinite(
                    found[1]
                ).all(
                    (1, 2)
                )  # a group that misses the tolerance gets NaN gradients here, and is counted
                rows.append({
                    "input": kind, "lam": lam, "cells": count,
                    "residual": float(inputs.true_residual(found[0], y, lam, P, COUPLING).max()),
                    "error z": float(np.abs(found[0] - exact[0]).max()),
                    "declined %": 100 * float(1 - told.mean()),
                    "error dy": float(np.linalg.norm((found[1] - exact[1])[told]) / np.linalg.norm(exact[1][told])) if told.any() else None,
                    "error dlam": float(abs(found[2] - exact[2]) / abs(exact[2])),
                    "milliseconds": 1e3 * report.seconds(call, y, v, repetitions=repetitions),
                })  # fmt: skip
    return report.Report(rows, list(rows[0]), lambda figure: _draw(figure, rows))


def _both(solver, tol=None):
    """z, dL/dy and dL/dlam for L = v . z."""

    @jax.jit
    def call(y, v, lam):
        z, back = jax.vjp(
            lambda y, lam: ibnn_jax.implicit_bias(
                y, lam, P, COUPLING, solver=solver, tol=tol
            ),
            y,
            lam,
        )
        return z, *back(v)

    return call


def _draw(figure, rows):
    for axis, kind in zip(figure.subplots(1, 2, sharey=True), ("trained", "random")):
        for lam in dict.fromkeys(r["lam"] for r in rows):
            mine = [r for r in rows if (r["lam"], r["input"]) == (lam, kind)]
            axis.loglog(
                [r["cells"] for r in mine],
                [r["residual"] for r in mine],
                "o-",
                label=f"lam = {lam}",
            )
        axis.axhline(1e-3, color="grey", lw=0.8)
        axis.set(xlabel="cells", ylabel="largest true residual", title=f"{kind} y")
    axis.legend(fontsize=7)
