"""The equation z = phi(A z + u) as a problem for the solvers of the library."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from ibnn_jax.core.options import is_known, real_array
from ibnn_jax.core.problem import AbstractProblem, Linearisation
from ibnn_jax.nemon.activations import check_activation, slope
from ibnn_jax.nemon.matrices import AbstractMatrix, as_matrix
from ibnn_jax.nemon.weights import best_weights


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NEMONProblem(AbstractProblem):
    """r(z) = phi(A z + u) - z for G rows u [G, n] and one matrix A.

    Its safe step is the average iteration of the paper,

        z <- (1 - a) z + a phi(A z + u),    a = 1 / (1 - min_i min(a_ii, 0))

    which contracts by 1 - a (1 - max(gamma, 0)) in the norm weighted by eta where mu(A)
    <= gamma < 1. The transposed system of the adjoint, w = A^T D w + v with D =
    diag(phi'), contracts as fast by the same step.

    Args:
        A: the matrix, shared by all rows.
        u: the input of every row.
        eta: the weights of the norm in which the safe step contracts.
        certified: whether z is known to be unique, for all rows; see `bind`.
        activation: phi, elementwise, nondecreasing, of slope at most 1.
    """

    A: AbstractMatrix
    u: Float[Array, "G n"]
    eta: Float[Array, "n"]
    certified: Bool[Array, ""]
    activation: Callable[[Array], Array] = field(metadata={"static": True})

    shared = ("A", "eta", "certified")

    def residual(self, z):
        return self.activation(self.A.apply(z) + self.u) - z

    def start(self):
        """One averaged step from 0, which needs no product."""
        return self._average() * self.activation(self.u)

    def tolerance(self, tol):
        """tol (1 + max|u|), per row."""
        tol = max(tol, 4 * float(jnp.finfo(self.u.dtype).eps))
        return tol * (1 + jnp.abs(self.u).max(-1))

    def sanitised(self):
        finite = jnp.isfinite(self.u).all(-1)
        sound = jnp.array(
            [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(self.A)]
        )
        u = jnp.where(finite[:, None], self.u, 0)
        return replace(self, u=u), finite & sound.all()

    def rounding(self, z):
        """eps |A|_inf max|z|: A with entries off by rounding has such a residual."""
        size = jnp.abs(self.A.summary()).sum(1).max() * jnp.abs(z).max(-1)
        return float(jnp.finfo(z.dtype).eps) * size

    def size(self, r):
        """|r|_eta, which the average iteration brings down at every step."""
        return (jnp.abs(r) / self.eta[None]).max(-1)

    @property
    def unique(self):
        return self.certified | jnp.zeros_like(self.u[:, 0], dtype=bool)

    def step_sizes(self, z):
        return self._average() * jnp.ones_like(z)

    @property
    def shortest_step(self):
        return self._average() * jnp.ones_like(self.u[:, :1])

    def linearise(self, z):
        """H = I - D A with D = diag(phi'(A z + u))."""
        d = slope(self.activation, self.A.apply(z) + self.u)
        return Linearisation(
            lambda v: v - d * self.A.apply(v),
            lambda w: w - self.A.apply_transpose(d * w),
            1 / (1 - jnp.minimum(d * self.A.diagonal()[None], 0)),
        )

    def _average(self) -> Float[Array, ""]:
        return average_step(self.A)


def average_step(A: Array | AbstractMatrix) -> Float[Array, ""]:
    """1 / (1 - min_i min(a_ii, 0)), the longest step that is proved to contract."""
    smallest = jax.lax.stop_gradient(as_matrix(A).diagonal()).min()
    return 1 / (1 - jnp.minimum(smallest, 0))


def bind(
    A: Array | AbstractMatrix,
    u: Float[Array, "..."],
    activation: Callable[[Array], Array],
    eta: Float[Array, "c"] | None = None,
    certified: bool | None = None,
) -> NEMONProblem:
    """Check the arguments and lay them out; half precision is solved in float32.

    Args:
        eta: weights of the norm in which mu(A) < 1 certifies that z is unique; None
            takes the best.
        certified: True where another condition is known to hold; None asks mu(A).

    Raises:
        ValueError: u is not floating or does not end in the shape of z, A is not
            square, eta does not fit or is known not to be positive, or phi is seen to
            decrease or to have a slope above 1.
    """
    matrix = as_matrix(A)
    u = real_array("u", u)
    if not jnp.issubdtype(u.dtype, jnp.floating):
        raise ValueError(f"u must have a floating dtype; got {u.dtype}")
    event = matrix.event
    if u.shape[u.ndim - len(event) :] != event:
        raise ValueError(
            f"u must end in the shape {list(event)} of z; got {list(u.shape)}"
        )
    check_activation(activation)
    dtype = jnp.promote_types(jnp.promote_types(u.dtype, matrix.dtype), jnp.float32)
    matrix = matrix.astype(dtype)
    eta = _weights(eta, matrix, dtype)
    unique = matrix.measure(eta) < 1 if certified is None else jnp.asarray(certified)
    rows = u.astype(dtype).reshape(-1, prod(event))
    eta = jnp.tile(eta, prod(event[:-1]))
    return NEMONProblem(matrix, rows, eta, unique, activation)


def _weights(eta, matrix: AbstractMatrix, dtype) -> Float[Array, "c"]:
    size = matrix.event[-1]
    if eta is None:
        return best_weights(matrix.summary())
    if jnp.shape(eta) != (size,):
        raise ValueError(f"eta must be [{size}]; got {list(jnp.shape(eta))}")
    if is_known(eta) and not (np.asarray(eta) > 0).all():
        raise ValueError("eta must be positive")
    return jax.lax.stop_gradient(jnp.asarray(eta, dtype))
