"""Fig. 2: decision boundaries of three hidden neurons on the two concentric arrows."""

import numpy as np

from train.experiments import results, style

TITLE = "Three hidden neurons on two concentric arrows (Fig. 2)"
PAPER = "IBNN approximates the boundary, which is not convex, well; the SM does not."
SIZE = (10, 5)
SIDE = 81  # of the grid that the boundary is drawn from
LAM, P = -2.0, 10.0
LAMS, PS = (-0.1, -0.5, -2.0, -5.0), (1.0, 3.0, 10.0, 30.0)
RATE, BATCH = 0.02, 100


def points(study):
    by_lam = [
        {"lam": lam, "p": P} for lam in (LAMS[1:3] if study.options.quick else LAMS)
    ]
    by_p = [
        {"lam": LAM, "p": p} for p in (PS[1:2] if study.options.quick else PS) if p != P
    ]
    return [{"lam": 0.0, "p": P}, *by_lam, *by_p]


def measure(study, point):
    """Accuracy of every seed, and the logit of the best one on a grid (a row per line of the grid)."""
    import jax

    from train import data

    arrows = data.arrows()
    train = jax.jit(
        jax.vmap(_train, in_axes=(0, None, None, None, None)), static_argnums=4
    )
    keys = jax.random.split(jax.random.key(5), study.options.seeds)
    flat = lambda images: images.reshape(len(images), 2)
    sets = (
        flat(arrows.train_images),
        arrows.train_labels,
        flat(arrows.test_images),
        arrows.test_labels,
    )
    accuracy, grid = (
        np.asarray(x)
        for x in train(keys, sets, point["lam"], point["p"], study.options.epochs)
    )
    rows = [{"seed": s, "accuracy": round(float(a), 6)} for s, a in enumerate(accuracy)]
    best = grid[accuracy.argmax()]
    return rows + [
        {"line": i, "logits": " ".join(f"{v:.3f}" for v in line)}
        for i, line in enumerate(best)
    ]


def _train(key, sets, lam, p, epochs):
    """One network by Adam: test accuracy, logits on the grid [SIDE, SIDE]."""
    import jax
    import jax.numpy as jnp
    import optax

    import ibnn_jax

    x, labels, x_test, labels_test = sets
    keys = jax.random.split(key, 4)
    # lam = 0 is the standard model; m, b, then scale, shift of batch norm, then the head.
    normal = jax.random.normal
    params = (
        normal(keys[0], (2, 3)),
        normal(keys[1], (3,)),
        jnp.ones(3),
        jnp.zeros(3),
        normal(keys[2], (3,)),
        0.0,
    )

    def forward(params, x, statistics=None):
        m, b, scale, shift, c, c0 = params
        v = jax.nn.relu(
            ibnn_jax.implicit_bias(x @ m - b, lam, p, ibnn_jax.Uniform((-1,)))
        )
        mean, var = (v.mean(0), v.var(0)) if statistics is None else statistics
        return ((v - mean) / jnp.sqrt(var + 1e-5) * scale + shift) @ c + c0, (mean, var)

    optimizer = optax.adam(
        optax.cosine_decay_schedule(RATE, epochs * (len(x) // BATCH))
    )

    def step(carry, rows):
        params, state = carry
        loss = lambda params: optax.sigmoid_binary_cross_entropy(
            forward(params, x[rows])[0], labels[rows]
        ).mean()
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry, key):
        return jax.lax.scan(
            step, carry, jax.random.permutation(key, len(x)).reshape(-1, BATCH)
        )

    (params, _), _ = jax.lax.scan(
        epoch, (params, optimizer.init(params)), jax.random.split(keys[3], epochs)
    )
    _, statistics = forward(params, x)
    accuracy = ((forward(params, x_test, statistics)[0] > 0) == labels_test).mean()
    ticks = jnp.linspace(-1, 1, SIDE)
    grid = jnp.stack(jnp.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    return accuracy, forward(params, grid, statistics)[0].reshape(SIDE, SIDE)


def _curves(rows):
    """(lam, p) -> accuracies of the seeds, grid."""
    found = {}
    for lam, p in dict.fromkeys((row["lam"], row["p"]) for row in rows):
        mine = results.pick(rows, lam=lam, p=p)
        accuracy = results.column(
            [r for r in mine if np.isfinite(r["seed"])], "accuracy"
        )
        lines = sorted(
            (r for r in mine if np.isfinite(r["line"])), key=lambda r: r["line"]
        )
        found[lam, p] = (
            accuracy,
            np.array([[float(v) for v in r["logits"].split()] for r in lines]),
        )
    return found


def draw(figure, rows):
    from train.data import ARROW, HOLE, TRAPEZOID

    left, right = figure.subplots(1, 2, sharey=True)
    curves = _curves(rows)
    sm = next(k for k in curves if k[0] == 0)
    ticks = np.linspace(-1, 1, SIDE)
    for axis, chosen, colours, title in (
        (left, [k for k in curves if k[0] != 0 and k[1] == P], "Greens", f"p = {P:g}"),
        (right, sorted(k for k in curves if k[0] == LAM), "Reds", f"lam = {LAM:g}"),
    ):
        for polygon, colour in (
            (TRAPEZOID, "#3b6fb6"),
            (HOLE, "white"),
            (ARROW, "#edc948"),
        ):
            axis.fill(
                *polygon.T,
                color=colour,
                alpha=0.35 if colour != "white" else 1,
                linewidth=0,
            )
        shades = [_shade(colours, i, len(chosen)) for i in range(len(chosen))]
        for key, colour in zip([sm, *chosen], ["#1f4e9c", *shades]):
            accuracy, grid = curves[key]
            axis.contour(ticks, ticks, grid, levels=[0], colors=[colour])
            name = (
                "SM"
                if key == sm
                else f"lam {key[0]:g}"
                if axis is left
                else f"p {key[1]:g}"
            )
            axis.plot(
                [],
                [],
                color=colour,
                label=f"{name}: {100 * accuracy.max():.1f}% (median {100 * np.median(accuracy):.1f}%)",
            )
        axis.set(title=title, xlim=(-1, 1), ylim=(1, -1), aspect="equal")
        axis.legend(fontsize=7, loc="lower right")


def _shade(colours, i, count):
    import matplotlib

    return matplotlib.colormaps[colours](0.4 + 0.55 * i / max(1, count - 1))


def verdict(rows):
    curves = _curves(rows)
    text = lambda key: (
        f"{style.percent(curves[key][0].max())} (median {style.percent(np.median(curves[key][0]))})"
    )
    sm = next(k for k in curves if k[0] == 0)
    ibnn = [k for k in curves if k[0] != 0]
    best = max(ibnn, key=lambda k: np.median(curves[k][0]))
    others = "; ".join(f"lam {k[0]:g}, p {k[1]:g}: {text(k)}" for k in ibnn)
    return f"Best test accuracy of the seeds: SM {text(sm)}; {others}. By the median, lam {best[0]:g} with p {best[1]:g} is the best IBNN."
