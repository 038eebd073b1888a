"""Solvers of other libraries, on the same equation.

Each is made by make(p, coupling, tol, max_steps) and called as
(y [groups, ...], lam) -> (z, steps [groups]).
"""

from collections.abc import Callable

import jax
import numpy as np

import ibnn_jax


def bias(z, p, coupling):
    """B(z) of one group without batch axes."""
    return ibnn_jax.inverse(z, 1.0, p, coupling) - z


def batched(solve_one: Callable) -> Callable:
    """solve_one(y, lam, B, tol, max_steps) as make: jitted, vmapped over groups."""

    def make(p, coupling, tol, max_steps):
        def one(y, lam):
            return solve_one(y, lam, lambda z: bias(z, p, coupling), tol, max_steps)

        return jax.jit(jax.vmap(one, (0, None)))

    return make


def jaxopt_solvers() -> dict[str, Callable]:
    import jaxopt

    def fixed_point(y, lam, bias, tol, max_steps):
        found = jaxopt.FixedPointIteration(
            lambda z, y, lam: y - lam * bias(z), maxiter=max_steps, tol=tol
        ).run(y, y, lam)
        return found.params, found.state.iter_num

    def anderson(y, lam, bias, tol, max_steps):
        found = jaxopt.AndersonAcceleration(
            lambda z, y, lam: y - lam * bias(z), maxiter=max_steps, tol=tol
        ).run(y, y, lam)
        return found.params, found.state.iter_num

    def broyden(y, lam, bias, tol, max_steps):
        found = jaxopt.Broyden(
            lambda z, y, lam: z + lam * bias(z) - y,
            maxiter=max_steps,
            tol=tol,
            history_size=50,
        ).run(y, y, lam)
        return found.params, found.state.iter_num

    return {
        "jaxopt FixedPointIteration": fixed_point,
        "jaxopt AndersonAcceleration": anderson,
        "jaxopt Broyden": broyden,
    }


def optimistix_solvers() -> dict[str, Callable]:
    import optimistix as optx

    def by_root(method):
        def solve(y, lam, bias, tol, max_steps):
            found = optx.root_find(
                lambda z, _: z + lam * bias(z) - y,
                method(rtol=tol, atol=tol),
                y,
                max_steps=max_steps,
                throw=False,
            )
            return found.value, found.stats["num_steps"]

        return solve

    def by_fixed_point(**options):
        def solve(y, lam, bias, tol, max_steps):
            found = optx.fixed_point(
                lambda z, _: y - lam * bias(z),
                optx.FixedPointIteration(rtol=tol, atol=tol, **options),
                y,
                max_steps=max_steps,
                throw=False,
            )
            return found.value, found.stats["num_steps"]

        return solve

    return {
        "optimistix FixedPointIteration": by_fixed_point(),
        "optimistix FixedPointIteration damp 0.5": by_fixed_point(damp=0.5),
        "optimistix Newton": by_root(optx.Newton),
        "optimistix Dogleg": by_root(optx.Dogleg),
    }


def torchdeq_solvers() -> dict[str, Callable]:
    """Eager PyTorch on the CPU, all groups at once; Uniform and Dense couplings."""
    import torch
    from torchdeq.solver import get_solver

    def solver(name):
        method = get_solver(name)

        def solve(y, lam, p, coupling, tol, max_steps):
            lam = float(lam)
            flat = torch.tensor(np.asarray(y).reshape(len(y), -1))
            w = 1 / flat.shape[1]
            if hasattr(coupling, "w"):
                w = torch.tensor(np.asarray(coupling.w), dtype=flat.dtype)

            def step(z):
                pairs = torch.tanh(p * (z[:, None, :] - z[:, :, None]))
                return flat - lam * (w * pairs).sum(-1)

            with torch.no_grad():
                z, _, info = method(
                    step, flat, max_iter=max_steps, tol=tol, stop_mode="abs"
                )
            return z.reshape(y.shape).numpy(), np.asarray(info["nstep"])

        return lambda *options: lambda y, lam: solve(y, lam, *options)

    names = ("fixed_point_iter", "anderson", "broyden")
    return {f"torchdeq {name}": solver(name) for name in names}


def available() -> tuple[dict, dict]:
    """(name -> jitted peer, name -> PyTorch peer) of the installed libraries."""
    compiled = {}
    for library, make in (
        ("jaxopt", jaxopt_solvers),
        ("optimistix", optimistix_solvers),
    ):
        try:
            compiled |= {name: batched(solve) for name, solve in make().items()}
        except ImportError:
            print(f"{library} is not installed and left out: pip install '.[bench]'")
    try:
        eager = torchdeq_solvers()
    except ImportError:
        eager = {}
        print("torchdeq is not installed and left out: pip install '.[bench-torch]'")
    return compiled, eager
