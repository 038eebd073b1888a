"""Random groups of every kind, solved and differentiated, against dense float64.

The reference is NumPy alone: Newton with dense matrices from the z that was returned,
then the adjoint system and the sums of the gradients. What a group claims is held to:

    residual    3 tolerances, beyond what rounding z changes
    dL/dy       1% of its largest entry
    dL/dlam,    3%, or 2% of the sum of the absolute values of their terms, in which the
    dL/dp       mean of u has no part
    dL/dw       3% of its largest entry

Each is reported as a share of what is allowed, so 1 is the limit.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

import ibnn_jax
from benchmarks import report

KINDS = (
    "normal",
    "uniform",
    "ties",
    "clusters",
    "outlier",
    "crowd",
    "heavy",
    "near",
    "constant",
)
CHECKS = ("residual", "y", "lam", "p", "w")


@dataclass(frozen=True)
class Batch:
    """Groups of one size that one program solves.

    Args:
        coupling: "uniform", "window", "dense" (one w) or "vmap" (a traced w each).
        shape: of a group. solver: a name. dtype: "float32" or "float64".
    """

    coupling: str
    shape: tuple[int, ...]
    solver: str
    dtype: str
    groups: int
    seed: int = 0


@dataclass(frozen=True)
class Groups:
    """Inputs in float64: y, v [G, n], lam, p [G], w [n, n] or [G, n, n]."""

    y: np.ndarray
    v: np.ndarray
    lam: np.ndarray
    p: np.ndarray
    w: np.ndarray
    names: list[str]


def run(size):
    rows = []
    for batch in batches(size):
        shares, claimed, names = check(batch)
        row = {
            "coupling": batch.coupling,
            "n": int(np.prod(batch.shape)),
            "solver": batch.solver,
            "dtype": batch.dtype,
            "groups": batch.groups,
            "converged": int(claimed.sum()),
        }
        failures = np.zeros(batch.groups, bool)
        for name in CHECKS:
            share = shares[name]
            row[name] = float(share.max(initial=0))
            failures |= share > 1
        row["failures"] = int(failures.sum())
        rows.append(row)
        for group in np.flatnonzero(failures):
            found = {name: round(float(shares[name][group]), 2) for name in CHECKS}
            print(f"{batch}: group {group} {names[group]} {found}", flush=True)
        jax.clear_caches()
    return report.Report(rows, list(rows[0]), lambda figure: _draw(figure, rows))


def batches(size):
    """The batches of a size: "tiny", "quick" or "full" (5,000 groups)."""
    if size == "tiny":
        return [Batch("uniform", (7,), "Newton", "float32", 8)]
    rng = np.random.default_rng(0)
    solvers = ("auto", "Newton", "Anderson", "Broyden", "GradientDescent", "Picard")
    made = []
    count, groups = (54, 86) if size == "full" else (8, 40)
    for k in range(count):
        coupling = ("uniform", "window", "dense", "vmap")[k % 4]
        sizes = {
            "uniform": [(1,), (2,), (5,), (17,), (64,), (130,), (200,)],
            "window": [(1, 1), (2, 3), (5, 7), (8, 8)],
        }.get(coupling, [(1,), (2,), (3,), (12,), (40,)])
        shape = sizes[rng.integers(len(sizes))]
        solver = solvers[(k // 4) % len(solvers)]
        dtype = ("float32", "float64")[rng.integers(2)]
        made.append(Batch(coupling, shape, solver, dtype, groups, k))
    wide = [
        ("auto", "float32", 150),
        ("auto", "float64", 100),
        ("Newton", "float32", 50),
    ]
    full = size == "full"
    many = (200, 300, 784) if full else (200, 784)
    for solver, dtype, groups in wide if full else [("auto", "float32", 30)]:
        for n in many if solver == "auto" else (300,):
            groups = min(groups, 30) if n == 784 else groups
            made.append(Batch("uniform", (n,), solver, dtype, groups, n))
    return made


def check(batch: Batch):
    """(share of what is allowed per check and group, who claims convergence, names)."""
    groups = random_groups(batch)
    x64 = batch.dtype == "float64"
    with jax.enable_x64(x64):
        z, code, gradients = solve(batch, groups)
    claimed = code < 2
    shares = {name: np.zeros(batch.groups) for name in CHECKS}
    for k in np.flatnonzero(claimed):
        w = groups.w[k] if groups.w.ndim == 3 else groups.w
        inputs = (groups.y[k], groups.lam[k], groups.p[k], w, groups.v[k])
        found = [None if g is None else g[k] for g in gradients]
        for name, share in compare(z[k], found, *inputs, batch).items():
            shares[name][k] = share
    return shares, claimed, groups.names


def random_groups(batch: Batch) -> Groups:
    """The inputs of a batch, rounded to its dtype."""
    rng = np.random.default_rng([batch.seed, batch.groups])
    n = int(np.prod(batch.shape))
    w = weights(batch, rng, n)
    ys, lams, ps, names = [], [], [], []
    for k in range(batch.groups):
        kind = KINDS[rng.integers(len(KINDS))]
        spread, p = 10 ** rng.uniform(-2, 1.6), 10 ** rng.uniform(-0.3, 1.5)
        far = rng.random() < 0.2
        offset = rng.normal() * 10 ** rng.uniform(0, 5 if far else 0) if far else 0
        own = w[k] if w.ndim == 3 else w
        most = max(own.sum(1).max(), 1e-30)
        negative = max(0, -np.linalg.eigvalsh(own).min()) if n < 100 else 0
        draws = (
            -(10 ** rng.uniform(-3, 1.4)) / most,
            rng.uniform(0, 0.99) / (p * (most + negative)),
            rng.uniform(1, 3) / (p * most),
            0.0,
        )
        which = rng.choice(4, p=(0.6, 0.25, 0.1, 0.05))
        ys.append(spread * _shape_of(kind, rng, n) + offset)
        lams.append(draws[which])
        ps.append(p)
        names.append(
            f"{kind} spread {spread:.3g} offset {offset:.3g} "
            f"lam {draws[which]:.3g} p {p:.3g}"
        )
    v = rng.normal(size=(batch.groups, n)) + rng.integers(0, 2, (batch.groups, 1))
    held = [np.array(x, batch.dtype).astype(float) for x in (ys, v, lams, ps, w)]
    return Groups(*held, names)


def _shape_of(kind, rng, n):
    y = rng.normal(size=n)
    if kind == "uniform":
        return rng.uniform(-1, 1, n)
    if kind == "ties":
        return np.where(rng.random(n) < 0.6, -0.3, y)
    if kind == "clusters":
        return rng.choice(rng.normal(size=4), n) + 0.01 * y
    if kind == "outlier":
        return np.where(np.arange(n) == 0, 20, y)
    if kind == "crowd":  # a clump beside few others, which make its cells wide
        return np.where(np.arange(n) % 50 == 0, rng.uniform(0.1, 3), 0.003 * y)
    if kind == "heavy":
        return y**3
    if kind == "near":
        return 1e-4 * y
    return np.full(n, 0.7) if kind == "constant" else y


def weights(batch: Batch, rng, n):
    """w as a dense matrix; "vmap" has one per group, of every kind and size."""
    if batch.coupling == "uniform":
        return np.full((n, n), 1 / n)
    if batch.coupling == "window":
        side = _window(batch.shape)
        places = [np.arange(s) for s in batch.shape]
        near = [
            abs(x[:, None] - x) <= m // 2 for x, m in zip(places, side, strict=True)
        ]
        return np.kron(near[0], near[1]) / np.prod(side)
    return np.stack([_dense(rng, n) for _ in range(batch.groups)])[
        slice(None) if batch.coupling == "vmap" else 0
    ]


def _window(shape):
    return tuple(max(m for m in (1, 3, 5) if m <= s) for s in shape)


def _dense(rng, n):
    w = rng.random((n, n)) ** 3
    kind = rng.integers(4)
    if kind == 1:  # few neighbours
        w = w * (rng.random((n, n)) < 2 / n)
    if kind == 2:  # neurons that nobody sees
        alone = rng.random(n) < 0.4
        w[alone], w[:, alone] = 0, 0
    w = w + w.T
    w = w / max(w.sum(1).max(), 1e-30)
    return w * 10 ** rng.uniform(-8, 8) if kind == 3 else w


def solve(batch: Batch, groups: Groups):
    """(z, result codes, gradients of y, lam, p and w, None where not asked)."""
    solver = "auto" if batch.solver == "auto" else getattr(ibnn_jax, batch.solver)()
    y, v, lam, p, w = (
        jnp.asarray(x, batch.dtype)
        for x in (groups.y, groups.v, groups.lam, groups.p, groups.w)
    )

    def loss(y, lam, p, coupling, v):
        solution = ibnn_jax.implicit_bias(
            y, lam, p, coupling, solver=solver, return_solution=True
        )
        return (v * solution.value).sum(), solution

    if batch.coupling == "vmap":

        @jax.jit
        @jax.vmap
        def call(y, lam, p, w, v):
            def of(y, lam, p, w):
                return loss(y, lam, p, ibnn_jax.Dense.unchecked(w), v)

            return jax.grad(of, (0, 1, 2, 3), has_aux=True)(y, lam, p, w)

        gradients, solution = call(y, lam, p, w, v)
    else:
        axes = tuple(range(-len(batch.shape), 0))
        coupling = {
            "uniform": lambda: ibnn_jax.Uniform(axes),
            "window": lambda: ibnn_jax.Window(_window(batch.shape), axes),
            "dense": lambda: ibnn_jax.Dense(np.asarray(w)),
        }[batch.coupling]()

        @jax.jit
        def call(y, lam, p, v):
            y, v = (x.reshape(-1, *batch.shape) for x in (y, v))
            lam, p = (x.reshape(-1, *[1] * len(batch.shape)) for x in (lam, p))
            grad = jax.grad(loss, (0, 1, 2), has_aux=True)
            return grad(y, lam, p, coupling, v)

        gradients, solution = call(y, lam, p, v)
    flat = [np.asarray(g, float).reshape(batch.groups, -1) for g in gradients]
    flat = flat if len(flat) == 4 else [*flat, None]
    z = np.asarray(solution.value, float).reshape(batch.groups, -1)
    return z, np.asarray(solution.result), flat


def compare(z, gradients, y, lam, p, w, v, batch: Batch) -> dict[str, float]:
    """What one group misses, as shares of what is allowed."""
    n, eps = len(y), float(np.finfo(batch.dtype).eps)
    most = w.sum(1).max()
    steep = 1 + abs(lam) * p * most
    size = np.ptp(y)
    tol = {"float32": 1e-6, "float64": 1e-11}[batch.dtype]
    leeway = 4 * eps + tol  # of z, relative to the range
    if batch.solver == "auto" and batch.coupling == "uniform" and n > 128:
        tol, leeway = ibnn_jax.MeanField().default_tol, 4 * eps
    allowed = tol * (1 + size / 2 + min(abs(lam) * most, size))
    rounding = 4 * eps * steep * abs(y).max()
    shift = 0.5 * (y.max() + y.min())
    r, *_ = _parts(z - shift, y - shift, lam, p, w)
    shares = {"residual": abs(r).max() / (3 * allowed + rounding)}
    exact = newton(z - shift, y - shift, lam, p, w)
    if exact is None:  # past the bound, next to a solution that is no minimum
        return shares
    _, bias, by_p, hessian, tanh = _parts(exact, y - shift, lam, p, w)
    u = np.linalg.solve(hessian, v)
    free = u - u.mean()
    terms = {"lam": bias, "p": lam * by_p}
    found_y, found_lam, found_p, found_w = gradients
    shares["y"] = _over(abs(found_y - u).max(), 0.01 * abs(u).max())
    for name, found in (("lam", found_lam), ("p", found_p)):
        true, sizes = -(free * terms[name]).sum(), abs(free * terms[name]).sum()
        # What rounding, and exact solvers' tolerance, leave of the terms, sech^2 next
        # to 0 among them, and z of neurons that are equal.
        scale = most if name == "lam" else most * abs(lam) * size
        floor = leeway * abs(free).sum() * scale
        error = abs(found[0] - true)
        shares[name] = _over(error, max(0.03 * abs(true), 0.02 * sizes) + floor)
    if found_w is not None:
        true = -lam * u[:, None] * tanh
        error = abs(found_w.reshape(n, n) - true).max()
        shares["w"] = _over(error, 0.03 * abs(true).max() + 1e-30)
    return shares


def newton(z, y, lam, p, w):
    """The solution next to z; None where its Hessian is no safe minimum."""
    scale = 1e-13 * (1 + abs(y).max())
    for _ in range(60):
        r, _, _, hessian, _ = _parts(z, y, lam, p, w)
        if abs(r).max() <= scale:
            break
        z = z + np.linalg.solve(hessian, r)
    if lam * p * w.sum(1).max() < 0.5:  # positive definite by the bound
        return z
    least = np.linalg.eigvalsh(_parts(z, y, lam, p, w)[3]).min()
    return z if least > 0.04 and abs(r).max() <= 1e3 * scale else None


def _parts(z, y, lam, p, w):
    """(r, B, dB/dp, H, tanh) of a group."""
    t = z[None, :] - z[:, None]
    tanh = np.tanh(p * t)
    slope = w * (1 - tanh**2)
    bias = (w * tanh).sum(1)
    hessian = np.eye(len(z)) + lam * p * (slope - np.diag(slope.sum(1)))
    return y - lam * bias - z, bias, (slope * t).sum(1), hessian, tanh


def _over(error, allowed):
    if not np.isfinite(error):
        return np.inf
    return float(error / allowed) if error > 0 else 0.0


def _draw(figure, rows):
    axis = figure.subplots()
    for name in CHECKS:
        axis.semilogy([max(row[name], 1e-6) for row in rows], ".", label=name)
    axis.axhline(1, color="grey", lw=0.8)
    axis.set(xlabel="batch", ylabel="largest share of what is allowed")
    axis.legend(fontsize=7)
