"""What a solver can be asked for, and that a choice is compiled once."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import test_util as jtu

import ibnn_jax
from ibnn_jax import Anderson, Broyden, GradientDescent, Newton, Picard, Uniform
from ibnn_jax.solvers import from_jaxopt

BAD = [
    (Picard, dict(damping=0.0)),
    (Picard, dict(damping=1.5)),
    (Picard, dict(damping="fast")),
    (Picard, dict(damping=True)),
    (Picard, dict(damping=float("nan"))),
    (GradientDescent, dict(armijo=0)),
    (GradientDescent, dict(armijo=0.6)),
    (GradientDescent, dict(shrink=1.0)),
    (Anderson, dict(window=0)),
    (Anderson, dict(window=2.5)),
    (Anderson, dict(ridge=-1.0)),
    (Anderson, dict(ridge=float("nan"))),
    (Broyden, dict(memory=0)),
    (Broyden, dict(memory=True)),
]


@pytest.mark.parametrize("kind, options", BAD)
def test_bad_options(kind, options):
    with pytest.raises(ValueError, match=f"{kind.__name__}: {next(iter(options))}"):
        kind(**options)


@pytest.mark.parametrize("kind", [Picard, GradientDescent, Anderson, Broyden, Newton])
def test_options_are_frozen_and_known(kind):
    solver = kind()
    assert hash(solver) == hash(kind())
    field = dataclasses.fields(solver)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(solver, field, 1)
    with pytest.raises(TypeError):
        kind(no_such_option=1)


def test_jaxopt_errors(monkeypatch):
    pytest.importorskip("jaxopt")
    for bad in ("Andersen", "LBFGS", dict, Anderson):
        with pytest.raises(ValueError, match="must be one of"):
            from_jaxopt(bad)
    for option in ("histroy_size", "maxiter", "tol", "fixed_point_fun"):
        with pytest.raises(ValueError, match="no option"):
            from_jaxopt("AndersonAcceleration", **{option: 3})
    monkeypatch.setitem(sys.modules, "jaxopt", None)
    with pytest.raises(ImportError, match="pip install jaxopt"):
        from_jaxopt("Broyden")


def test_outside_jit_a_choice_of_options_is_compiled_once():
    y = jnp.asarray(np.random.default_rng(0).normal(size=(2, 20)))

    def calls(lam):
        solution = ibnn_jax.solve(y, lam, 10.0, Uniform((-1,)))
        gradient = jax.grad(
            lambda y: ibnn_jax.implicit_bias(y, lam, 10.0, Uniform((-1,))).sum()
        )(y)
        return (
            solution.value,
            gradient,
            ibnn_jax.solve_adjoint(y, y, lam, 10.0, Uniform((-1,))).value,
        )

    calls(-0.5)
    with jtu.count_jit_compilation_cache_miss() as count:
        calls(-0.7)
    assert count() == 0
