"""jaxopt's solvers under our loop, for comparison; jaxopt itself is imported only when one is asked for."""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ibnn_jax.iterate import Solver
from ibnn_jax.problem import Problem
from ibnn_jax.solvers.picard import precondition, step_sizes

# What each class calls its function, and the defaults that differ from jaxopt's own.
_KNOWN = {
    "FixedPointIteration": ("fixed_point_fun", {}),
    "AndersonAcceleration": ("fixed_point_fun", {}),
    # jaxopt keeps as many terms as it may take steps, and its line search slows most of these cases down.
    "Broyden": ("fun", {"history_size": 50, "stepsize": 1.0}),
}
_OURS = {
    "fun",
    "fixed_point_fun",
    "has_aux",
    "maxiter",
    "tol",
    "jit",
    "unroll",
    "verbose",
}


def _import():
    try:
        import jaxopt
    except ImportError as error:
        raise ImportError(
            "from_jaxopt needs jaxopt, which is not installed: pip install jaxopt"
        ) from error
    return jaxopt


def from_jaxopt(solver: str | type, **options) -> "FromJaxopt":
    """A solver of jaxopt for use as `solver=`: its init_state and update run one step at a time, group by group.

    Args:
        solver: "FixedPointIteration", "AndersonAcceleration" or "Broyden", or that class of jaxopt.
        options: fields of that class, e.g. history_size=5. Counting, stopping and tolerance belong to our loop.

    Given to it is the safe Picard step z -> z + P r (`picard.precondition`), as fixed-point map or as root of -P r.
    The residual reported is ours, computed anew at the value returned. These methods bring no safeguard: they may
    fail where ours converge, and past the uniqueness bound they may end in any solution (FixedPointIteration
    excepted, which is `Picard()` there).

    Raises:
        ImportError: jaxopt is not installed.
        ValueError: another solver, an unknown option, or one that belongs to the loop.
    """
    jaxopt = _import()
    name = (
        solver if isinstance(solver, str) else getattr(solver, "__name__", repr(solver))
    )
    if name not in _KNOWN or not (
        isinstance(solver, str) or solver is getattr(jaxopt, name)
    ):
        raise ValueError(
            f"from_jaxopt: solver must be one of {', '.join(_KNOWN)} of jaxopt; got {solver!r}"
        )
    fields = {f.name for f in dataclasses.fields(getattr(jaxopt, name))} - _OURS
    for option in options:
        if option not in fields:
            raise ValueError(
                f"from_jaxopt: {name} has no option {option!r} here; it has {', '.join(sorted(fields))}"
            )
    return FromJaxopt(name, tuple(sorted((_KNOWN[name][1] | options).items())))


@dataclass(frozen=True)
class FromJaxopt(Solver):
    """Made by `from_jaxopt`."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def init(self, problem, z):
        start = lambda z, y, lam, p: self._build(
            problem.op, y, lam, p, False
        ).init_state(z)
        inner = jax.vmap(start)(*_default_dtype(z, problem.y, problem.lam, problem.p))
        return _State(z, problem.residual(z), inner)

    def step(self, problem, state, active, unrolled):
        update = lambda inner, z, y, lam, p: tuple(
            self._build(problem.op, y, lam, p, unrolled).update(z, inner)
        )
        z, inner = jax.vmap(update)(
            state.inner, *_default_dtype(state.z, problem.y, problem.lam, problem.p)
        )
        z = z.astype(state.z.dtype)
        inner = jax.tree.map(lambda new, old: new.astype(old.dtype), inner, state.inner)
        return _State(z, problem.residual(z), inner)

    def _build(self, op, y, lam, p, unrolled):
        """The jaxopt object for one group: y [n], lam and p [1]."""
        problem = Problem(y[None], lam[None], p[None], op)

        def safe_step(z):
            return precondition(
                step_sizes(problem, z[None]), problem.residual(z[None])
            )[0]

        function = _KNOWN[self.name][0]
        fun = (
            (lambda z: -safe_step(z))
            if function == "fun"
            else lambda z: z + safe_step(z)
        )
        # jaxopt's inner loops (Broyden's line search) become scans when reverse mode must pass through them.
        return getattr(_import(), self.name)(
            **{function: fun}, unroll=unrolled, **dict(self.options)
        )


def _default_dtype(*arrays):
    """jaxopt makes arrays of the default dtype: under x64 it works in float64, whatever the dtype of z."""
    return [x.astype(jnp.result_type(float)) for x in arrays]


class _State(NamedTuple):
    z: Float[Array, "G n"]
    r: Float[Array, "G n"]
    inner: Any  # jaxopt's state, every leaf led by G
