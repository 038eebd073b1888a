"""Gradients: error against the exact float64 adjoint, time and memory of every way to differentiate, and of peers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import ibnn_jax
from benchmarks import inputs, report
from benchmarks.peers import one_group

P = 10.0
COUPLING = ibnn_jax.Uniform((-2, -1))
SIZES = {  # groups, side, lams, repetitions
    "tiny": (2, 7, (-0.5,), 1),
    "quick": (8, 14, (-0.5,), 3),
    "full": (
        24,
        14,
        (-2.0, -0.5, -0.1, 0.03, 0.08),
        5,
    ),  # with 28 a peer with dense Jacobians takes more than 15 minutes
}


def ours():
    newton = ibnn_jax.Newton()
    yield (
        "Implicit, MeanField",
        functools.partial(
            ibnn_jax.implicit_bias,
            solver=ibnn_jax.MeanField(),
            adjoint=ibnn_jax.Implicit(),
        ),
    )
    yield (
        "Implicit, Newton",
        functools.partial(
            ibnn_jax.implicit_bias, solver=newton, adjoint=ibnn_jax.Implicit()
        ),
    )
    for k in (1, 5, 20):
        damping = 1.0 if k == 1 else 0.2
        yield (
            f"Phantom({k}, {damping})",
            functools.partial(
                ibnn_jax.implicit_bias,
                solver=newton,
                adjoint=ibnn_jax.Phantom(k, damping),
            ),
        )
    yield (
        "Unrolled(8), Newton",
        functools.partial(
            ibnn_jax.implicit_bias, solver=newton, adjoint=ibnn_jax.Unrolled(8)
        ),
    )


def theirs():
    """Implicit differentiation by jaxopt and optimistix around their own solvers, one group at a time under vmap."""

    def jaxopt_anderson(y, lam, p, coupling):
        import jaxopt

        def one(y):
            step = lambda z, y, lam: y - lam * one_group(y, p, coupling)(z)
            return (
                jaxopt.AndersonAcceleration(
                    step, maxiter=200, tol=1e-5, implicit_diff=True
                )
                .run(y, y, lam)
                .params
            )

        return jax.vmap(one)(y)

    def optimistix_newton(y, lam, p, coupling):
        import optimistix

        def one(y):
            root = lambda z, args: (
                z + args[1] * one_group(args[0], p, coupling)(z) - args[0]
            )
            return optimistix.root_find(
                root,
                optimistix.Newton(1e-5, 1e-5),
                y,
                args=(y, lam),
                max_steps=50,
                throw=False,
            ).value

        return jax.vmap(one)(y)

    for name, solve in (
        ("jaxopt AndersonAcceleration", jaxopt_anderson),
        ("optimistix Newton", optimistix_newton),
    ):
        try:
            __import__(name.split()[0])
            yield name, solve
        except ImportError:
            print(
                f"{name.split()[0]} is not installed and left out: pip install '.[bench]'"
            )


def run(size):
    groups, side, lams, repetitions = SIZES[size]
    shape = jax.ShapeDtypeStruct((groups, side, side), jnp.float32)
    compiled = {
        name: _gradient(solve).lower(shape, jnp.float32(0), shape).compile()
        for name, solve in [*ours(), *theirs()]
    }
    reference = _gradient(dict(ours())["Implicit, Newton"])
    rows = []
    for lam in lams:
        y = jnp.asarray(inputs.kinds(lam, groups, side)["trained"])
        v = jnp.asarray(np.random.default_rng(2).normal(size=y.shape), y.dtype)
        with jax.enable_x64(True):
            exact = [
                np.asarray(g)
                for g in reference(
                    *(jnp.asarray(np.asarray(x), jnp.float64) for x in (y, lam, v))
                )
            ]
        for name, gradient in compiled.items():
            call = lambda y, v: gradient(y, jnp.float32(lam), v)
            found = [np.asarray(g, np.float64) for g in call(y, v)]
            rows.append({
                "adjoint": name, "lam": lam, "n": side * side, "groups": groups,
                "error dy": float(np.linalg.norm(found[0] - exact[0]) / np.linalg.norm(exact[0])),
                "error dlam": float(abs(found[1] - exact[1]) / abs(exact[1])),
                "milliseconds": 1e3 * report.seconds(call, y, v, repetitions=repetitions),
                "MB": gradient.memory_analysis().temp_size_in_bytes / 1e6,
            })  # fmt: skip
    return report.Report(rows, list(rows[0]), lambda figure: _draw(figure, rows))


def _gradient(solve):
    return jax.jit(
        jax.grad(lambda y, lam, v: (v * solve(y, lam, P, COUPLING)).sum(), (0, 1))
    )


def _draw(figure, rows):
    axis = figure.subplots()
    for name in dict.fromkeys(r["adjoint"] for r in rows):
        mine = [r for r in rows if r["adjoint"] == name]
        axis.loglog(
            [r["milliseconds"] for r in mine],
            [max(r["error dy"], 1e-8) for r in mine],
            "o",
            label=name,
        )
    axis.set(
        xlabel="milliseconds, forward and backward",
        ylabel="relative error of dL/dy",
        title="each dot one lam",
    )
    axis.legend(fontsize=7)
