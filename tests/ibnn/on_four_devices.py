"""What `test_meshes` runs in a process with four devices."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ibnn_jax as ib

RNG = np.random.default_rng(0)
Y = jnp.asarray(RNG.normal(size=(8, 6, 8, 1)), jnp.float32)
W = RNG.random((48, 48))
COUPLINGS = {
    "uniform": ib.Uniform((-3, -2)),
    "window": ib.Window((3, 3)),
    "dense": ib.Dense((W + W.T) / 96),
}
CASES = [(name, "auto") for name in COUPLINGS] + [("uniform", ib.MeanField())]


def gradients(name, solver):
    """(y, lam) -> z and the gradients of y and lam, lam one per image."""

    def f(y, lam):
        inputs = y.reshape(y.shape[0], 48) if name == "dense" else y
        lam = lam[:, 0, 0] if name == "dense" else lam
        return ib.implicit_bias(inputs, lam, 3.0, COUPLINGS[name], solver=solver)

    def all_of_it(y, lam):
        z, back = jax.vjp(f, y, lam)
        return z, *back(jnp.cos(3 * z))

    return all_of_it


def same(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=2e-4, rtol=2e-3)


def shard_map():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    lam = jnp.full((8, 1, 1, 1), -0.4)
    for case in CASES:
        f = gradients(*case)
        specs = {"in_specs": P("d"), "out_specs": P("d")}
        same(jax.jit(jax.shard_map(f, mesh=mesh, **specs))(Y, lam), jax.jit(f)(Y, lam))


def explicit():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))
    lam = jnp.full((1, 1, 1, 1), -0.4)
    for case in CASES:
        f = jax.jit(gradients(*case))
        expected = f(Y, lam)
        with jax.set_mesh(mesh):
            same(f(jax.device_put(Y, NamedSharding(mesh, P("d"))), lam), expected)
    with jax.set_mesh(mesh):
        y = jax.device_put(Y, NamedSharding(mesh, P(None, None, "d")))
        try:
            ib.solve(y, -0.4, 3.0, ib.Uniform())
        except ValueError as error:
            assert "axis 2" in str(error) and "'d'" in str(error)
        else:
            raise AssertionError("a sharded coupled axis was not refused")


def functions():
    """What is not a solve: energy, inverse, one step, adjoint, gains."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))
    lam, v = jnp.full((1, 1, 1, 1), -0.4), jnp.sin(5 * Y)

    def all_of_them(coupling, y, v):
        return (
            ib.energy(v, y, lam, 3.0, coupling),
            ib.inverse(y, lam, 3.0, coupling),
            ib.one_step(y, lam, 3.0, coupling, has_stats=True),
            ib.solve_adjoint(y, v, lam, 3.0, coupling),
            ib.robustness.gain(y, v, lam, 3.0, coupling),
            ib.robustness.gain_spectrum(y, lam, 3.0, coupling),
        )

    for coupling in (COUPLINGS["uniform"], COUPLINGS["window"]):
        expected = all_of_them(coupling, Y, v)
        with jax.set_mesh(mesh):
            spread = (jax.device_put(x, NamedSharding(mesh, P("d"))) for x in (Y, v))
            same(all_of_them(coupling, *spread), expected)


def vmapped():
    """A vmap over the sharded axis, and one over the batch that a device holds."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))
    y = Y.reshape(4, 2, *Y.shape[1:])
    for case, axis in ((CASES[0], 0), (CASES[0], 1), (CASES[2], 0), (CASES[3], 0)):
        lam = np.full((y.shape[1 - axis], 1, 1, 1), -0.4, np.float32)
        f = jax.jit(jax.vmap(gradients(*case), (axis, None)))
        expected = f(y, jnp.asarray(lam))
        with jax.set_mesh(mesh):
            spread = jax.device_put(y, NamedSharding(mesh, P("d")))
            same(f(spread, jnp.asarray(lam)), expected)


def nemon_shard_map():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    graph, state = nnx.split(ib.NEMON(6, 2, rngs=nnx.Rngs(0)))

    def f(state, x):
        return nnx.merge(graph, state)(x)

    def gradient(f):
        return jax.jit(jax.grad(lambda s: (f(s, Y[:, :, 0, 0]) ** 2).sum()))(state)

    spread = jax.shard_map(f, mesh=mesh, in_specs=(P(), P("d")), out_specs=P("d"))
    same(gradient(spread), gradient(f))


def made_on_the_mesh():
    """A frozen w that lives on the mesh."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))
    x = Y[:, :, 0, 0]

    def output(x):
        w = ib.Dense(jnp.full((5, 5), 0.2))
        return ib.IBNNLinear(6, 5, lam=-0.4, coupling=w, rngs=nnx.Rngs(0))(x)

    expected = output(x)
    with jax.set_mesh(mesh):
        same(output(jax.device_put(x, NamedSharding(mesh, P("d")))), expected)


def modules():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))

    @nnx.jit
    def step(model, x):
        return nnx.value_and_grad(lambda m, x: (m(x) ** 2).sum())(model, x)

    for make in (
        lambda: ib.UCN((6, 8, 1), 3, kernel_size=3, rngs=nnx.Rngs(0)),
        lambda: ib.IBNNConv(1, 2, (3, 3), lam=-0.4, rngs=nnx.Rngs(0)),
        lambda: ib.NEMON(1, 2, rngs=nnx.Rngs(0)),
    ):
        expected = step(make(), Y)
        model = make()
        with jax.set_mesh(mesh):
            x = jax.device_put(Y, NamedSharding(mesh, P("d")))
            same(step(model, x), expected)


def margins():
    """Certificates, for images and labels that are both spread."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))
    graph, state = nnx.split(
        ib.EquilibriumClassifier((6, 8, 1), 3, features=4, rngs=nnx.Rngs(0))
    )
    images, labels = jax.nn.sigmoid(Y), jnp.arange(8) % 3

    @jax.jit
    def f(state, images, labels):
        model = nnx.merge(graph, state)
        return model.margins(images, labels, 0.01), model.certified(images, labels, 0.1)

    expected = f(state, images, labels)
    with jax.set_mesh(mesh):
        spread = jax.device_put((images, labels), NamedSharding(mesh, P("d")))
        state = jax.device_put(state, NamedSharding(mesh, P()))
        same(f(state, *spread), expected)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
