"""Bad calls of the library, each refused in one line that says what would be right."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ibnn_jax as ib
from ibnn_jax.core import fixed_point
from ibnn_jax.core import solve as core_solve

Y = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
IMAGES = np.zeros((2, 5, 5, 3), np.float32)
U = ib.Uniform((-1,))
W = np.full((4, 4), 0.25, np.float32)
NAN = float("nan")
rngs = partial(nnx.Rngs, 0)


def solve(y=Y, lam=-0.5, p=2.0, coupling=U, **options):
    return ib.solve(y, lam, p, coupling, **options)


def bias(y=Y, lam=-0.5, p=2.0, coupling=U, **options):
    return ib.implicit_bias(y, lam, p, coupling, **options)


def layer(**options):
    return ib.ImplicitBias(**{"lam": -0.5, **options})


def ucn(shape=(5, 5, 1), classes=3, **options):
    return ib.UCN(shape, classes, rngs=rngs(), **options)


class NotFrozen(ib.Newton):
    """As a dataclass that is not frozen: equal by its fields, so without a hash."""

    __hash__ = None  # type: ignore


def asymmetric():
    w = W.copy()
    w[0, 1] = 0.5
    return w


# (what it is about, the call, what the message says)
SOLVE = [
    ("integers", lambda: solve(np.arange(4)), "floating"),
    ("complex y", lambda: solve(Y + 0j), "y must be real"),
    ("empty group", lambda: solve(np.zeros((3, 0))), "at least one neuron"),
    ("p 0", lambda: solve(p=0.0), "p must be positive"),
    ("p negative", lambda: solve(p=-1.0), "p must be positive"),
    ("p has a zero", lambda: solve(p=np.array([[1.0], [0.0], [2.0]])), "positive"),
    ("p NaN", lambda: solve(p=NAN), "p must be positive"),
    ("p complex", lambda: solve(p=2j), "p must be real"),
    ("lam complex", lambda: solve(lam=1j), "lam must be real"),
    ("lam a string", lambda: solve(lam="small"), "lam must be real"),
    ("lam None", lambda: solve(lam=None), "lam must be real"),
    ("p None", lambda: solve(p=None), "p must be real"),
    ("p a string", lambda: solve(p="steep"), "p must be real"),
    ("y None", lambda: solve(None), "y must be real"),
    ("y ragged", lambda: solve([[1.0], [1.0, 2.0]]), "y must be real"),
    ("y of another byte order", lambda: solve(Y.astype(">f4")), "y must be real"),
    ("lam per neuron", lambda: solve(lam=np.zeros(4)), "size 1 on the coupled"),
    ("lam of another size", lambda: solve(lam=np.zeros((2, 1))), "broadcast"),
    ("p per neuron", lambda: solve(p=np.ones((3, 4))), "size 1 on the coupled"),
    ("coupling None", lambda: solve(coupling=None), "Uniform, Window or Dense"),
    ("coupling a name", lambda: solve(coupling="channel"), r"Uniform\(\(-3, -2\)\)"),
    ("coupling a class", lambda: solve(coupling=ib.Uniform), "Uniform, Window or"),
    ("coupling an array", lambda: solve(coupling=W), "Uniform, Window or Dense"),
    ("an axis that y lacks", lambda: solve(coupling=ib.Uniform((2,))), "rank 2"),
    ("an axis twice", lambda: solve(coupling=ib.Uniform((1, -1))), "twice"),
    ("w of another size", lambda: solve(coupling=ib.Dense(np.eye(3))), "4 neurons"),
    ("window too large", lambda: solve(IMAGES, coupling=ib.Window((7, 7))), "larger"),
    ("solver a name", lambda: solve(solver="newton"), r"Newton\(\)"),
    ("solver misspelt", lambda: solve(solver="andersen"), r"Anderson\(\)"),
    ("solver a class", lambda: solve(solver=ib.Picard), r"Picard\(\)"),
    ("solver None", lambda: solve(solver=None), r"Newton\(\)"),
    ("solver a number", lambda: solve(solver=3), r"Newton\(\)"),
    ("solver not frozen", lambda: solve(solver=NotFrozen()), "frozen=True"),
    ("strict in jit", lambda: jax.jit(partial(solve, strict=True))(Y), "not computed"),
    ("MeanField on Dense", lambda: solve(coupling=ib.Dense(W), solver=ib.MeanField()),
     "use solver=Newton"),
    ("MeanField on hard_tanh",
     lambda: solve(coupling=ib.Uniform((-1,), ib.hard_tanh), solver=ib.MeanField()),
     "smooth"),
    ("tol 0", lambda: solve(tol=0), "tol must be positive"),
    ("tol negative", lambda: solve(tol=-1e-3), "tol must be positive"),
    ("tol True", lambda: solve(tol=True), "tol must be a number"),
    ("tol a string", lambda: solve(tol="1e-3"), "tol must be a number"),
    ("tol NaN", lambda: solve(tol=NAN), "tol must be"),
    ("tol infinite", lambda: solve(tol=np.inf), "tol must be positive"),
    ("tol an array", lambda: solve(tol=np.array([1e-3, 1e-4])), "tol must be a number"),
    ("max_steps 0", lambda: solve(max_steps=0), "at least 1"),
    ("max_steps 10.5", lambda: solve(max_steps=10.5), "whole number"),
    ("max_steps 10.0", lambda: solve(max_steps=10.0), "whole number"),
    ("max_steps True", lambda: solve(max_steps=True), "whole number"),
    ("trace of MeanField", lambda: solve(solver=ib.MeanField(), trace=True), "Newton"),
    ("start of another shape", lambda: solve(start=Y[:2]), "one shape"),
    ("start of MeanField", lambda: solve(start=Y, solver=ib.MeanField()), "no start"),
]  # fmt: skip

BIAS = [
    ("two ways to return", lambda: bias(return_solution=True, has_stats=True), "both"),
    ("adjoint a name", lambda: bias(adjoint="unrolled"), r"Unrolled\(\)"),
    ("adjoint a class", lambda: bias(adjoint=ib.Unrolled), r"Unrolled\(\)"),
    ("adjoint a number", lambda: bias(adjoint=1), r"Phantom\(k\)"),
    ("unrolled MeanField",
     lambda: bias(solver=ib.MeanField(), adjoint=ib.Unrolled()), "Newton"),
    ("any order of MeanField",
     lambda: bias(solver=ib.MeanField(), adjoint=ib.Implicit(any_order=True)),
     "Newton"),
    ("solver a name", lambda: bias(solver="broyden"), r"Broyden\(\)"),
    ("p 0", lambda: bias(p=0), "p must be positive"),
    ("integers", lambda: bias(np.arange(4)), "floating"),
    ("max_steps -1", lambda: bias(max_steps=-1), "at least 1"),
    ("z and v differ", lambda: ib.solve_adjoint(Y, Y[:2], -0.5, 2.0, U), "one shape"),
    ("tol of the adjoint", lambda: ib.solve_adjoint(Y, Y, -0.5, 2.0, U, tol=-1.0),
     "tol must be positive"),
    ("steps of the adjoint", lambda: ib.solve_adjoint(Y, Y, -0.5, 2.0, U, max_steps=0),
     "at least 1"),
    ("p of the adjoint", lambda: ib.solve_adjoint(Y, Y, -0.5, -2.0, U), "positive"),
    ("z and y differ", lambda: ib.energy(Y, Y[:2], -0.5, 2.0, U), "one shape"),
    ("energy without coupling", lambda: ib.energy(Y, Y, -0.5, 2.0, None), "coupling"),
    ("inverse with p 0", lambda: ib.inverse(Y, -0.5, 0.0, U), "p must be positive"),
    ("inverse of integers", lambda: ib.inverse(np.arange(4), -0.5, 1.0, U), "floating"),
    ("inverse of a name", lambda: ib.inverse(Y, -0.5, 1.0, "pixel"), "coupling"),
    ("one step of integers", lambda: ib.one_step(np.arange(4), -0.5, 1.0, U),
     "floating"),
    ("one step, p negative", lambda: ib.one_step(Y, -0.5, -1.0, U), "positive"),
]  # fmt: skip

COUPLINGS = [
    ("no axes", lambda: ib.Uniform(()), "empty"),
    ("axes of floats", lambda: ib.Uniform((1.5,)), "integers"),
    ("axes of bools", lambda: ib.Uniform((True,)), "integers"),
    ("axes a name", lambda: ib.Uniform("channel"), "integers"),
    ("axes None", lambda: ib.Uniform(None), "integers"),
    ("the same axis twice", lambda: ib.Uniform((-1, -1)), "twice"),
    ("a window on one axis", lambda: ib.Window(axes=(-2, -2)), "twice"),
    ("sigma a name", lambda: ib.Uniform((-1,), "tanh"), "ibnn_jax.tanh"),
    ("sigma of jax", lambda: ib.Window(sigma=jnp.tanh), "ibnn_jax.tanh"),
    ("sigma of a w", lambda: ib.Dense(W, jnp.tanh), "ibnn_jax.tanh"),
    ("w ragged", lambda: ib.Dense([[1.0], [1.0, 2.0]]), "different lengths"),
    ("an even window", lambda: ib.Window((4, 4)), "odd"),
    ("a window of 0", lambda: ib.Window((0, 3)), "odd positive"),
    ("a window of three sides", lambda: ib.Window((3, 3, 3)), "two odd"),
    ("a window of floats", lambda: ib.Window((3.0, 3.0)), "integers"),
    ("a window of one axis", lambda: ib.Window(axes=(-1,)), "two axes"),
    ("w a vector", lambda: ib.Dense(np.ones(3)), "square"),
    ("w not square", lambda: ib.Dense(np.ones((2, 3))), "square"),
    ("w empty", lambda: ib.Dense(np.ones((0, 0))), "non-empty"),
    ("w asymmetric", lambda: ib.Dense(asymmetric()), r"\(w \+ w.T\) / 2"),
    ("w negative", lambda: ib.Dense(-W), "non-negative"),
    ("w NaN", lambda: ib.Dense(W * NAN), "NaN"),
    ("w infinite", lambda: ib.Dense(W * np.inf), "infinite"),
    ("w complex", lambda: ib.Dense(W + 0j), "real"),
    ("w of strings", lambda: ib.Dense(np.array([["a"]])), "real"),
    ("bound of a name", lambda: ib.uniqueness_bound(2.0, "channel"), "coupling"),
    ("bound of p 0", lambda: ib.uniqueness_bound(0.0, U), "p must be positive"),
    ("an unknown constraint", lambda: ib.project_lam(0.1, 2.0, U, "positive"),
     "'unique'"),
    ("projection of a name", lambda: ib.project_lam(0.1, 2.0, "pixel"), "coupling"),
    ("projection with p 0", lambda: ib.project_lam(0.1, 0.0, U), "p must be positive"),
    ("solver for a name", lambda: ib.default_solver("layer", 100), "coupling"),
    ("solver for half a neuron", lambda: ib.default_solver(U, 0.5), "whole number"),
    ("solver for no neuron", lambda: ib.default_solver(U, 0), "at least 1"),
]  # fmt: skip

OPTIONS = [
    ("Newton tol", lambda: ib.Newton(linear_tol=0), r"in \(0, 1\)"),
    ("Newton tol True", lambda: ib.Newton(linear_tol=True), "must be a number"),
    ("Newton steps", lambda: ib.Newton(linear_steps=2.5), "whole number"),
    ("Newton cuts", lambda: ib.Newton(cuts=0), "at least 1"),
    ("Picard damping", lambda: ib.Picard(damping=2), r"in \(0, 1\]"),
    ("Picard word", lambda: ib.Picard(damping="fast"), "auto"),
    ("Anderson window", lambda: ib.Anderson(window=0), "at least 1"),
    ("Anderson window 2.5", lambda: ib.Anderson(window=2.5), "whole number"),
    ("Anderson ridge", lambda: ib.Anderson(ridge=-1), "negative"),
    ("Broyden memory", lambda: ib.Broyden(memory=True), "whole number"),
    ("armijo", lambda: ib.GradientDescent(armijo=0.9), r"in \(0, 0.5\]"),
    ("shrink", lambda: ib.GradientDescent(shrink=NAN), "must be a number"),
    ("cells empty", lambda: ib.MeanField(cells=()), "increasing"),
    ("cells decreasing", lambda: ib.MeanField(cells=(63, 19)), "increasing"),
    ("few cells", lambda: ib.MeanField(cells=(2,)), "at least 4"),
    ("half a cell", lambda: ib.MeanField(cells=(19.5,)), "whole numbers"),
    ("cells a number", lambda: ib.MeanField(cells=19), "whole numbers"),
    ("default_tol", lambda: ib.MeanField(default_tol=-1), r"in \(0, inf\)"),
    ("pairwise size", lambda: ib.MeanField(pairwise_max_size=1.5), "whole number"),
    ("kernels", lambda: ib.MeanField(kernels="yes"), "True or False"),
    ("Implicit tol", lambda: ib.Implicit(tol=0), "tol must be positive"),
    ("Implicit tol True", lambda: ib.Implicit(tol=True), "tol must be a number"),
    ("Implicit steps", lambda: ib.Implicit(max_steps=1.5), "whole number"),
    ("Implicit steps None", lambda: ib.Implicit(max_steps=None), "whole number"),
    ("Implicit share", lambda: ib.Implicit(max_relative_residual=0), "in"),
    ("Implicit share NaN", lambda: ib.Implicit(max_relative_residual=NAN), "number"),
    ("Implicit order", lambda: ib.Implicit(any_order=2), "True or False"),
    ("Unrolled steps", lambda: ib.Unrolled(0), "at least 1"),
    ("Unrolled steps 2.5", lambda: ib.Unrolled(2.5), "whole number"),
    ("Phantom 0", lambda: ib.Phantom(0), "at least 1"),
    ("Phantom 1.5", lambda: ib.Phantom(1.5), "whole number"),
    ("Phantom damping", lambda: ib.Phantom(1, damping=0), r"in \(0, 1\]"),
    ("core: no solver", lambda: core_solve(None, "newton"), r"Newton\(\)"),
    ("core: no problem", lambda: core_solve(Y, ib.Newton()), "AbstractProblem"),
    ("core: adjoint", lambda: fixed_point(Y, ib.Newton()), "AbstractProblem"),
]  # fmt: skip

LAYERS = [
    ("constraint", lambda: layer(constraint="positive"), "'unique'"),
    ("p 0", lambda: layer(p=0), "p must be one positive"),
    ("p two numbers", lambda: layer(p=np.ones(2)), "p must be one positive"),
    ("p NaN", lambda: layer(p=NAN), "p must be one positive"),
    ("coupling a name", lambda: layer(coupling="layer"), r"Uniform\(\(-3, -2, -1\)\)"),
    ("solver a name", lambda: layer(solver="newton"), r"Newton\(\)"),
    ("adjoint a name", lambda: layer(adjoint="phantom"), r"Phantom\(k\)"),
    ("max_steps 0", lambda: layer(max_steps=0), "at least 1"),
    ("tol True", lambda: layer(tol=True), "tol must be a number"),
    ("lite a word", lambda: layer(lite="yes"), "lite must be True or False"),
    ("batched a number", lambda: layer(batched=2), "batched must be True or False"),
    ("no rngs", lambda: ib.ImplicitBias(), "rngs"),
    ("lam of another shape", lambda: layer(lam=np.zeros(3)), "lam"),
    ("lam of other channels", lambda: layer(lam=np.zeros(3), channels=4), "lam"),
    ("channels of a group", lambda: layer(coupling=U, channels=4), "one lam"),
    ("channels half", lambda: layer(channels=1.5), "whole number"),
    ("linear: channels",
     lambda: ib.IBNNLinear(3, 4, coupling=ib.Uniform((-2,)), channels=3, rngs=rngs()),
     "out_features"),
    ("conv: channels", lambda: ib.IBNNConv(1, 2, (3, 3), channels=3, rngs=rngs()),
     "out_features"),
    ("conv: half a side", lambda: ib.IBNNConv(1, 2, 2.5, rngs=rngs()), "kernel_size"),
    ("conv: no side", lambda: ib.IBNNConv(1, 2, (3, 0), rngs=rngs()), "at least 1"),
    ("train_w without w", lambda: layer(train_w=True), "Dense"),
    ("MeanField with Window",
     lambda: layer(coupling=ib.Window(), solver=ib.MeanField()), "Newton"),
    ("coupled batch", lambda: layer()(jnp.zeros((2, 3, 4))), "batch"),
    ("integers", lambda: layer(coupling=U)(jnp.zeros((2, 3), int)), "floating"),
    ("linear: coupling",
     lambda: ib.IBNNLinear(3, 4, coupling="pixel", rngs=rngs()), "coupling"),
    ("linear: p", lambda: ib.IBNNLinear(3, 4, p=-1, rngs=rngs()), "positive"),
    ("conv: solver",
     lambda: ib.IBNNConv(1, 2, (3, 3), solver="picard", rngs=rngs()), r"Picard\(\)"),
    ("UCN: two sizes", lambda: ucn((5, 5)), "height, width, channels"),
    ("UCN: no channel", lambda: ucn((5, 5, 0)), "all positive"),
    ("UCN: no layer", lambda: ucn(layers=0), "at least 1"),
    ("UCN: no class", lambda: ucn(classes=0), "at least 1"),
    ("UCN: kernel 0", lambda: ucn(kernel_size=0), "at least 1"),
    ("UCN: a module", lambda: ucn(neuron=layer()), "partial"),
    ("UCN: one image", lambda: ucn(neuron=None)(jnp.zeros((5, 5, 1))), r"\[N, height"),
    ("UCN: other images", lambda: ucn(neuron=None)(jnp.zeros((1, 4, 5, 1))), "got"),
    ("linear: activation",
     lambda: ib.IBNNLinear(3, 4, activation="relu", rngs=rngs()), "jax.nn.relu"),
    ("UCN: bytes", lambda: ucn(neuron=None)(jnp.zeros((1, 5, 5, 1), jnp.uint8)),
     "/ 255"),
    ("project a dict", lambda: ib.project({"lam": jnp.zeros(())}), "project_lam"),
    ("transfer of other layers",
     lambda: ib.transfer(ucn(neuron=None), ucn(neuron=None, layers=2)), "layers"),
    ("transfer of other channels",
     lambda: ib.transfer(ucn(neuron=None), ucn(neuron=None, channels=2)), "transfer"),
]  # fmt: skip

CALLS = [
    pytest.param(call, says, id=f"{room}: {name}")
    for room, table in {
        "solve": SOLVE,
        "implicit_bias": BIAS,
        "couplings": COUPLINGS,
        "options": OPTIONS,
        "layers": LAYERS,
    }.items()
    for name, call, says in table
]


@pytest.mark.parametrize("call, says", CALLS)
def test_it_is_refused_in_one_line(call, says):
    with pytest.raises((ValueError, TypeError), match=says) as refusal:
        call()
    message = str(refusal.value)
    assert "\n" not in message and 10 < len(message) < 300


def test_the_table_has_at_least_a_hundred():
    assert len(CALLS) >= 100


def test_a_second_derivative_names_the_adjoint_that_has_one():
    y = jnp.asarray(Y[0])

    def loss(y):
        return (bias(y) ** 3).sum()

    def of_gradient(y):
        return (jax.grad(loss)(y) ** 2).sum()

    for derivative in (jax.hessian(loss), jax.grad(of_gradient)):
        for call in (derivative, jax.jit(derivative)):
            with pytest.raises(TypeError, match=r"Implicit\(any_order=True\)"):
                call(y)
