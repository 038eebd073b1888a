"""jaxopt's solvers under our loop, for comparison; imported only when asked for."""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ibnn_jax.core.solver import IterativeSolver

# What each class calls its function, and the defaults that differ from jaxopt's own.
_KNOWN = {
    "FixedPointIteration": ("fixed_point_fun", {}),
    "AndersonAcceleration": ("fixed_point_fun", {}),
    # jaxopt keeps as many terms as it may take steps, and its line search slows most
    # of these cases down.
    "Broyden": ("fun", {"history_size": 50, "stepsize": 1.0}),
}
_LOOP_OWNS = {
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
    """A solver of jaxopt for use as `solver=`, run one step at a time, group by group.

    Args:
        solver: "FixedPointIteration", "AndersonAcceleration" or "Broyden", or that
            class of jaxopt.
        options: fields of that class, e.g. history_size=5. Counting, stopping and
            tolerance belong to our loop.

    It is given the safe step z -> z + P r of the problem, as fixed-point map or as root
    of -P r. The residual reported is ours, computed anew at the value returned. These
    methods bring no safeguard: they may fail where ours converge, and past the
    uniqueness bound they may end in any solution (FixedPointIteration excepted, which
    is `Picard()` there).

    Raises:
        ImportError: jaxopt is not installed.
        ValueError: another solver, an unknown option, or one that belongs to the loop.
    """
    jaxopt = _import()
    name = solver if isinstance(solver, str) else getattr(solver, "__name__", "")
    known = name in _KNOWN
    if not known or not (isinstance(solver, str) or solver is getattr(jaxopt, name)):
        raise ValueError(
            f"from_jaxopt: solver must be one of {', '.join(_KNOWN)} of jaxopt; "
            f"got {solver!r}"
        )
    fields = {f.name for f in dataclasses.fields(getattr(jaxopt, name))} - _LOOP_OWNS
    for option in options:
        if option not in fields:
            raise ValueError(
                f"from_jaxopt: {name} has no option {option!r} here; "
                f"it has {', '.join(sorted(fields))}"
            )
    return FromJaxopt(name, tuple(sorted((_KNOWN[name][1] | options).items())))


@dataclass(frozen=True)
class FromJaxopt(IterativeSolver):
    """Made by `from_jaxopt`."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def init(self, problem, z):
        grouped, join = problem.parts()

        def start(z, parts):
            return self._build(join(_one_group(parts)), False).init_state(z)

        inner = jax.vmap(start)(*_default_dtype((z, grouped)))
        return _State(z, problem.residual(z), inner)

    def step(self, problem, state, active, unrolled):
        grouped, join = problem.parts()

        def update(inner, z, parts):
            solver = self._build(join(_one_group(parts)), unrolled)
            return tuple(solver.update(z, inner))

        z, inner = jax.vmap(update)(state.inner, *_default_dtype((state.z, grouped)))
        z = z.astype(state.z.dtype)
        inner = jax.tree.map(lambda new, old: new.astype(old.dtype), inner, state.inner)
        return _State(z, problem.residual(z), inner)

    def _build(self, problem, unrolled):
        """The jaxopt object for a problem of one group."""

        def safe_step(z):
            r = problem.residual(z[None])
            return problem.precondition(problem.step_sizes(z[None]), r)[0]

        def root(z):
            return -safe_step(z)

        def fixed_point(z):
            return z + safe_step(z)

        function = _KNOWN[self.name][0]
        fun = root if function == "fun" else fixed_point
        # jaxopt's inner loops (Broyden's line search) become scans when reverse mode
        # must pass through them.
        options = dict(self.options) | {function: fun, "unroll": unrolled}
        return getattr(_import(), self.name)(**options)


def _one_group(parts):
    return jax.tree.map(lambda x: x[None], parts)


def _default_dtype(tree):
    """jaxopt makes arrays of the default dtype: under x64 it works in float64."""
    return jax.tree.map(lambda x: x.astype(jnp.result_type(float)), tree)


class _State(NamedTuple):
    z: Float[Array, "G n"]
    r: Float[Array, "G n"]
    inner: Any  # jaxopt's state, every leaf led by G
