"""Solvers of other libraries: make(p, coupling, tol, max_steps) gives (y [groups, ...], lam) -> (z, steps [groups])."""

import jax
import numpy as np

from ibnn_jax.ibnn.layout import bind


def one_group(y, p, coupling):
    """z -> B(z) of one group without batch axes."""
    problem, layout = bind(y[None], 0.0, p, coupling)
    return lambda z: layout.from_groups(
        problem.op.bias(layout.to_groups(z[None]), problem.p)
    )[0]


def batched(solve_one):
    """Jitted, vmapped over groups."""

    def make(p, coupling, tol, max_steps):
        one = lambda y, lam: solve_one(
            y, lam, one_group(y, p, coupling), tol, max_steps
        )
        return jax.jit(jax.vmap(one, (0, None)))

    return make


def jaxopt_solvers():
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
        solver = jaxopt.Broyden(
            lambda z, y, lam: z + lam * bias(z) - y,
            maxiter=max_steps,
            tol=tol,
            history_size=50,
        )
        found = solver.run(y, y, lam)
        return found.params, found.state.iter_num

    return {
        "jaxopt FixedPointIteration": fixed_point,
        "jaxopt AndersonAcceleration": anderson,
        "jaxopt Broyden": broyden,
    }


def optimistix_solvers():
    import optimistix

    def solver(make, root):
        def solve(y, lam, bias, tol, max_steps):
            method = make(tol)
            if root:
                found = optimistix.root_find(
                    lambda z, _: z + lam * bias(z) - y,
                    method,
                    y,
                    max_steps=max_steps,
                    throw=False,
                )
            else:
                found = optimistix.fixed_point(
                    lambda z, _: y - lam * bias(z),
                    method,
                    y,
                    max_steps=max_steps,
                    throw=False,
                )
            return found.value, found.stats["num_steps"]

        return solve

    return {
        "optimistix FixedPointIteration": solver(
            lambda tol: optimistix.FixedPointIteration(rtol=tol, atol=tol), False
        ),
        "optimistix FixedPointIteration damp 0.5": solver(
            lambda tol: optimistix.FixedPointIteration(rtol=tol, atol=tol, damp=0.5),
            False,
        ),
        "optimistix Newton": solver(
            lambda tol: optimistix.Newton(rtol=tol, atol=tol), True
        ),
        "optimistix Dogleg": solver(
            lambda tol: optimistix.Dogleg(rtol=tol, atol=tol), True
        ),
    }


def torchdeq_solvers():
    """Eager PyTorch on the CPU, all groups at once; Uniform and Dense couplings."""
    import torch
    from torchdeq.solver import get_solver

    def solver(name):
        method = get_solver(name)

        def solve(y, lam, p, coupling, tol, max_steps):
            lam = float(lam)
            flat = torch.tensor(np.asarray(y).reshape(len(y), -1))
            n = flat.shape[1]
            w = (
                torch.tensor(np.asarray(coupling.w), dtype=flat.dtype)
                if hasattr(coupling, "w")
                else 1 / n
            )

            def step(z):
                return flat - lam * (
                    w * torch.tanh(p * (z[:, None, :] - z[:, :, None]))
                ).sum(-1)

            with torch.no_grad():
                z, _, info = method(
                    step, flat, max_iter=max_steps, tol=tol, stop_mode="abs"
                )
            return z.reshape(y.shape).numpy(), np.asarray(info["nstep"])

        return lambda *options: lambda y, lam: solve(y, lam, *options)

    return {
        f"torchdeq {name}": solver(name)
        for name in ("fixed_point_iter", "anderson", "broyden")
    }


def available() -> tuple[dict, dict]:
    """(name -> jitted peer, name -> PyTorch peer) of the libraries that are installed; says which are not."""
    compiled, eager = {}, {}
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
        print("torchdeq is not installed and left out: pip install '.[bench-torch]'")
    return compiled, eager
