"""Gradients: error against the exact float64 adjoint, time and memory."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import ibnn_jax
from benchmarks import inputs, report
from benchmarks.peers import bias

P = 10.0
COUPLING = ibnn_jax.Uniform((-2, -1))
SIZES = {  # groups, side, lams, repetitions
    "tiny": (2, 7, (-0.5,), 1),
    "quick": (8, 14, (-0.5,), 3),
    # with side 28 a peer with dense Jacobians takes more than 15 minutes
    "full": (24, 14, (-2.0, -0.5, -0.1, 0.03, 0.08), 5),
}


def ours() -> dict[str, Callable]:
    """name -> solve(y, lam, p, coupling), differentiable."""
    newton, implicit = ibnn_jax.Newton(), ibnn_jax.Implicit()
    options = {
        "Implicit, MeanField": (ibnn_jax.MeanField(), implicit),
        "Implicit, Newton": (newton, implicit),
        "Phantom(1, 1.0)": (newton, ibnn_jax.Phantom(1, 1.0)),
        "Phantom(5, 0.2)": (newton, ibnn_jax.Phantom(5, 0.2)),
        "Phantom(20, 0.2)": (newton, ibnn_jax.Phantom(20, 0.2)),
        "Unrolled(8), Newton": (newton, ibnn_jax.Unrolled(8)),
    }
    return {
        name: partial(ibnn_jax.implicit_bias, solver=solver, adjoint=adjoint)
        for name, (solver, adjoint) in options.items()
    }


def theirs() -> dict[str, Callable]:
    """Implicit differentiation of others around their own solvers, by group."""
    found = {}
    for name, solve in (
        ("jaxopt AndersonAcceleration", _jaxopt_anderson),
        ("optimistix Newton", _optimistix_newton),
    ):
        library = name.split()[0]
        try:
            __import__(library)
            found[name] = solve
        except ImportError:
            print(f"{library} is not installed and left out: pip install '.[bench]'")
    return found


def _jaxopt_anderson(y, lam, p, coupling):
    import jaxopt

    def one(y):
        solver = jaxopt.AndersonAcceleration(
            lambda z, y, lam: y - lam * bias(z, p, coupling),
            maxiter=200,
            tol=1e-5,
            implicit_diff=True,
        )
        return solver.run(y, y, lam).params

    return jax.vmap(one)(y)


def _optimistix_newton(y, lam, p, coupling):
    import optimistix

    def residual(z, args):
        y, lam = args
        return z + lam * bias(z, p, coupling) - y

    def one(y):
        return optimistix.root_find(
            residual,
            optimistix.Newton(1e-5, 1e-5),
            y,
            args=(y, lam),
            max_steps=50,
            throw=False,
        ).value

    return jax.vmap(one)(y)


def run(size: str) -> report.Report:
    groups, side, lams, repetitions = SIZES[size]
    shape = jax.ShapeDtypeStruct((groups, side, side), jnp.float32)
    compiled = {
        name: _gradient(solve).lower(shape, jnp.float32(0), shape).compile()
        for name, solve in (ours() | theirs()).items()
    }
    reference = _gradient(ours()["Implicit, Newton"])
    rows = []
    for lam in lams:
        y = jnp.asarray(inputs.kinds(lam, groups, side)["trained"])
        v = jnp.asarray(np.random.default_rng(2).normal(size=y.shape), y.dtype)
        exact = inputs.in_float64(reference, y, lam, v)
        for name, gradient in compiled.items():
            case = {"adjoint": name, "lam": lam, "n": side * side, "groups": groups}
            rows.append(case | _measure(gradient, y, lam, v, exact, repetitions))
    return report.Report(rows, list(rows[0]), lambda figure: _draw(figure, rows))


def _gradient(solve):
    """(dL/dy, dL/dlam) of L = v . z, jitted, called with (y, lam, v)."""

    def loss(y, lam, v):
        return (v * solve(y, lam, P, COUPLING)).sum()

    return jax.jit(jax.grad(loss, (0, 1)))


def _measure(gradient, y, lam, v, exact, repetitions) -> dict:
    arguments = (y, jnp.float32(lam), v)
    dy, dlam = (np.asarray(g, np.float64) for g in gradient(*arguments))
    seconds = report.seconds(gradient, *arguments, repetitions=repetitions)
    return {
        "error dy": float(np.linalg.norm(dy - exact[0]) / np.linalg.norm(exact[0])),
        "error dlam": float(abs(dlam - exact[1]) / abs(exact[1])),
        "milliseconds": 1e3 * seconds,
        "MB": gradient.memory_analysis().temp_size_in_bytes / 1e6,
    }


def _draw(figure, rows):
    axis = figure.subplots()
    for name in dict.fromkeys(r["adjoint"] for r in rows):
        mine = [r for r in rows if r["adjoint"] == name]
        times = [r["milliseconds"] for r in mine]
        errors = [max(r["error dy"], 1e-8) for r in mine]
        axis.loglog(times, errors, "o", label=name)
    axis.set(
        xlabel="milliseconds, forward and backward",
        ylabel="relative error of dL/dy",
        title="each dot one lam",
    )
    axis.legend(fontsize=7)
