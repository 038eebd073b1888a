"""The layers that NEMON is compared with: other conditions for a unique z."""

import math

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from ibnn_jax import nemon
from ibnn_jax.core import AbstractSolver
from ibnn_jax.core.batching import full_precision
from ibnn_jax.core.options import check_between
from ibnn_jax.nn.nemon import DenseEquilibrium, normal
from ibnn_jax.nn.recipe import saveable

saveable(nemon.PeacemanRachford)
saveable(nemon.ForwardBackward)


@saveable
class NormBounded(DenseEquilibrium):
    """The rival whose condition is |A|_inf <= bound < 1 (`nemon.norm_bounded`).

    Args:
        bound: of the absolute row sums of A; the other arguments as in `NEMON`.

    Raises:
        ValueError: bound is not in (0, 1).
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        bound: float = 0.95,
        rngs: nnx.Rngs,
        **options,
    ):
        bound = check_between("bound", bound, 0, 1)
        super().__init__(in_features, features, rngs, **options)
        self.T = nnx.Param(normal(rngs, (features, features), 1 / features))
        self.bound = bound

    def matrix(self) -> Float[Array, "n n"]:
        """A, with |A|_inf <= bound."""
        return nemon.norm_bounded(self.T[...], self.bound)

    def lipschitz(
        self, C: Float[Array, "q n"]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """`nemon.lipschitz` of x -> C z, with eta = 1 and gamma = bound."""
        return nemon.lipschitz(self.matrix(), self.B[...], C, self.eta, self.bound)

    def regulariser(self, C: Float[Array, "q n"]) -> Float[Array, ""]:
        """`nemon.regulariser` of x -> C z."""
        return nemon.regulariser(self.B[...], C, self.eta, self.bound)


@saveable
class MON(DenseEquilibrium):
    """The monotone operator network z = phi(A z + B x + b), see `nemon.monotone`.

    Args:
        margin: m, how strongly monotone I - A is.
        solver: `nemon.PeacemanRachford(alpha)` or `nemon.ForwardBackward(alpha)`, both
            for ReLU; another phi needs another solver, such as `Newton()`.
        in_features, features, rngs, and further options: as in `NEMON`.

    Raises:
        ValueError: margin is not positive; otherwise as `NEMON`.

    Reference: Winston and Kolter, Monotone operator equilibrium networks (2020).
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        margin: float = 0.1,
        solver: AbstractSolver = nemon.PeacemanRachford(),
        rngs: nnx.Rngs,
        **options,
    ):
        margin = check_between("margin", margin, 0, math.inf)
        super().__init__(in_features, features, rngs, solver=solver, **options)
        std = (3 * features) ** -0.5
        self.W = nnx.Param(normal(rngs, (features, features), std))
        self.S = nnx.Param(normal(rngs, (features, features), std))
        self.margin = margin

    def _certified(self):
        return True

    def matrix(self) -> Float[Array, "n n"]:
        """A, with I - A strongly monotone."""
        return nemon.monotone(self.W[...], self.S[...], self.margin)

    def lipschitz(
        self, C: Float[Array, "q n"]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """(the Euclidean bound, the componentwise bound) of x -> C z, l-inf to l-inf.

        The first is sqrt(in_features) |B| |C| / m in Euclidean norms. The componentwise
        bound is infinite where mu(A) < 1 does not hold for the best eta.
        """
        A, B = self.matrix(), self.B[...]
        rows = jnp.linalg.norm(C, axis=1).max()
        euclidean = B.shape[1] ** 0.5 * rows * jnp.linalg.norm(B, 2) / self.margin
        eta = nemon.best_weights(A)
        gamma = nemon.matrix_measure(A, eta)
        _, componentwise = nemon.lipschitz(A, B, C, eta, gamma)
        return euclidean, jnp.where(gamma < 1, componentwise, jnp.inf)

    @full_precision
    def interval(self, x_lo, x_hi):
        """z at the centre, give or take |B| |x_hi - x_lo| / (2 m) in Euclidean norms.

        The embedded network need not be well-posed for this A. Rows that miss their
        tolerance get infinite bounds, as in `nemon.interval`.
        """
        z, stats = self((x_lo + x_hi) / 2, return_stats=True)
        radius = jnp.linalg.norm((x_hi - x_lo) / 2, axis=-1, keepdims=True)
        reach = jnp.linalg.norm(self.B[...], 2) / self.margin * radius
        # Only of ReLU is it known that z >= 0; the reach holds for every phi.
        least = 0 if self.activation is nnx.relu else -jnp.inf
        lo, hi = jnp.maximum(z - reach, least), z + reach
        met = stats.converged[..., None]
        return jnp.where(met, lo, -jnp.inf), jnp.where(met, hi, jnp.inf)
