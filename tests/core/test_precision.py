"""Products of solvers and adjoints are full float32 whatever the caller's default is.

GPUs and TPUs round the factors of a product unless they are told not to, which would
leave a gradient wrong by half. The text that JAX lowers says how every product is made.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import ibnn_jax as ib
from ibnn_jax import nemon

UNIFORM = ib.Uniform((-1,))
WINDOW = ib.Window((3, 3), axes=(-2, -1))
DENSE = ib.Dense(jnp.full((20, 20), 0.05, jnp.float32))

Y = jax.ShapeDtypeStruct((2, 200), jnp.float32)
FEW = jax.ShapeDtypeStruct((2, 20), jnp.float32)
IMAGE = jax.ShapeDtypeStruct((2, 6, 5), jnp.float32)


def product_precisions(text: str) -> list[str]:
    """HIGHEST or not, for both factors of every product."""
    found = []
    for line in text.splitlines():
        if "dot_general" in line or "stablehlo.convolution" in line:
            stated = re.findall(r"HIGHEST|HIGH|DEFAULT", line)
            found += stated or ["not stated"]
    return found


def loss(y, **options):
    return (ib.implicit_bias(y, -0.5, 10.0, **options) ** 2).sum()


def in_a_scan(f):
    return lambda ys: jax.lax.scan(lambda total, y: (total, f(y)), 0.0, ys)[1]


def on_a_mesh(f):
    def sharded(y):
        device = jax.sharding.get_abstract_mesh().abstract_device
        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.sharding.AbstractMesh(
            (1,), ("groups",), axis_types=auto, abstract_device=device
        )
        spec = jax.sharding.PartitionSpec("groups")
        options = dict(mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
        return jax.shard_map(f, **options)(y)

    return sharded


def gradient_of_vmap(f):
    return jax.grad(lambda ys: jax.vmap(f)(ys).sum())


TRANSFORMS = {  # name -> (f -> what is lowered, whether it takes several y)
    "grad": (jax.grad, False),
    "vmap": (jax.vmap, True),
    "vmap of grad": (lambda f: jax.vmap(jax.grad(f)), True),
    "grad of vmap": (gradient_of_vmap, True),
    "grad in a scan": (lambda f: in_a_scan(jax.grad(f)), True),
    "grad in shard_map": (lambda f: on_a_mesh(jax.grad(f)), False),
}


def several(y):
    return jax.ShapeDtypeStruct((3, *y.shape), y.dtype)


@pytest.mark.parametrize(
    "platform, transform", [("cuda", "grad"), *[("tpu", name) for name in TRANSFORMS]]
)
def test_the_default_path_is_in_full_precision(lowered, platform, transform):
    transformed, takes_several = TRANSFORMS[transform]
    f = transformed(partial(loss, coupling=UNIFORM))
    y = several(Y) if takes_several else Y
    assert set(product_precisions(lowered(platform, f, y))) == {"HIGHEST"}


SOLVERS = {
    "Newton, Uniform": (Y, dict(coupling=UNIFORM, solver=ib.Newton())),
    "Newton, Window": (IMAGE, dict(coupling=WINDOW)),
    "Newton, Dense": (FEW, dict(coupling=DENSE)),
    "Anderson": (FEW, dict(coupling=DENSE, solver=ib.Anderson())),
    "Broyden": (FEW, dict(coupling=DENSE, solver=ib.Broyden())),
    "Picard": (FEW, dict(coupling=DENSE, solver=ib.Picard())),
    "GradientDescent": (FEW, dict(coupling=DENSE, solver=ib.GradientDescent())),
    "any order": (FEW, dict(coupling=DENSE, adjoint=ib.Implicit(any_order=True))),
    "Unrolled": (FEW, dict(coupling=DENSE, adjoint=ib.Unrolled(2))),
    "Phantom": (FEW, dict(coupling=DENSE, adjoint=ib.Phantom(2))),
    "Phantom, MeanField": (Y, dict(coupling=UNIFORM, adjoint=ib.Phantom(2))),
}
WITHOUT_PRODUCTS = {"Newton, Window"}


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_and_adjoint_is_in_full_precision(lowered, name):
    y, options = SOLVERS[name]
    f = jax.vmap(jax.grad(partial(loss, **options)))
    precisions = product_precisions(lowered("tpu", f, several(y)))
    assert set(precisions) == (set() if name in WITHOUT_PRODUCTS else {"HIGHEST"})


def hessian(y):
    return jax.hessian(
        partial(loss, coupling=DENSE, adjoint=ib.Implicit(any_order=True))
    )(y)


def gradient_in_w(y):
    def of_w(w):
        coupling = ib.Dense.unchecked(w)
        return loss(y, coupling=coupling)

    return jax.grad(of_w)(DENSE.w)


def several_w(y):
    """A w for each y, which no merged batch can hold."""
    ws = jnp.stack([jnp.asarray(DENSE.w)] * 2)
    solve = partial(loss, solver=ib.Newton())
    return jax.vmap(lambda w, y: solve(y, coupling=ib.Dense.unchecked(w)))(ws, y)


def adjoint_system(y):
    return ib.solve_adjoint(y, y, -0.5, 10.0, DENSE).value


@pytest.mark.parametrize("f", [hessian, gradient_in_w, several_w, adjoint_system])
def test_so_are_the_derivatives_of_second_order_and_of_w(lowered, f):
    assert set(product_precisions(lowered("tpu", f, FEW))) == {"HIGHEST"}


def nemon_loss(u, matrix, **options):
    return (nemon.fixed_point(matrix, u, **options) ** 2).sum()


def nemon_kernel_loss(u, kernel):
    return nemon_loss(u, nemon.Convolution(kernel, (4, 4)))


MATRIX = jax.ShapeDtypeStruct((6, 6), jnp.float32)
ROWS = jax.ShapeDtypeStruct((2, 6), jnp.float32)
KERNEL = jax.ShapeDtypeStruct((3, 3, 2, 2), jnp.float32)
MAPS = jax.ShapeDtypeStruct((2, 4, 4, 2), jnp.float32)
NEMON = {
    "Newton": (nemon_loss, ROWS, MATRIX),
    "Peaceman-Rachford": (
        partial(nemon_loss, solver=nemon.PeacemanRachford()),
        ROWS,
        MATRIX,
    ),
    "Phantom": (partial(nemon_loss, adjoint=ib.Phantom(2)), ROWS, MATRIX),
    "Convolution": (nemon_kernel_loss, MAPS, KERNEL),
}


@pytest.mark.parametrize("name", NEMON)
def test_nemon_is_in_full_precision(lowered, name):
    f, u, matrix = NEMON[name]
    gradient = jax.vmap(jax.grad(f, (0, 1)), (0, None))
    precisions = product_precisions(lowered("tpu", gradient, several(u), matrix))
    assert set(precisions) == {"HIGHEST"}


FRONT = partial(ib.ConvolutionalFront, channels=(2,))


@pytest.mark.parametrize("layer", [ib.NEMON, ib.NormBounded, ib.MON])
@pytest.mark.parametrize("front", [None, FRONT], ids=["pixels", "convolutions"])
def test_certificates_are_in_full_precision(lowered, layer, front):
    model = ib.EquilibriumClassifier(
        (6, 6, 1), 3, features=4, layer=layer, front=front, rngs=nnx.Rngs(0)
    )

    def f(images):
        return model.margins(images, jnp.zeros(2, jnp.int32), 0.1)

    images = jax.ShapeDtypeStruct((2, 6, 6, 1), jnp.float32)
    assert set(product_precisions(lowered("tpu", f, images))) == {"HIGHEST"}


def test_a_layer_of_maps_has_bounds_in_full_precision(lowered):
    layer = ib.NEMONConv(1, 2, (3, 3), rngs=nnx.Rngs(0))
    maps = jax.ShapeDtypeStruct((2, 4, 4, 1), jnp.float32)
    text = lowered("tpu", layer.interval, maps, maps)
    assert set(product_precisions(text)) == {"HIGHEST"}


@pytest.mark.parametrize("coupling", [UNIFORM, DENSE], ids=["Uniform", "Dense"])
def test_one_step_the_inverse_and_the_energy_are_in_full_precision(lowered, coupling):
    def f(y):
        step = ib.one_step(y, -0.5, 10.0, coupling)
        inverse = ib.inverse(y, -0.5, 10.0, coupling)
        return step.sum() + inverse.sum() + ib.energy(y, y, -0.5, 10.0, coupling).sum()

    precisions = product_precisions(lowered("tpu", jax.grad(f), FEW))
    assert set(precisions) <= {"HIGHEST"}


def test_a_product_of_default_precision_would_be_seen(lowered):
    matrix = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    assert set(product_precisions(lowered("tpu", jnp.matmul, matrix, matrix))) == {
        "DEFAULT"
    }
