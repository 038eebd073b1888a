"""Flax NNX layers z = phi(A z + B x + b) that are well-posed by construction."""

from abc import abstractmethod
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from ibnn_jax import nemon
from ibnn_jax.core import AbstractAdjoint, AbstractSolver, Stats
from ibnn_jax.core.batching import full_precision
from ibnn_jax.core.options import check_count, python_number
from ibnn_jax.nemon.equation import bind
from ibnn_jax.nemon.matrices import AbstractMatrix
from ibnn_jax.nemon.solve import check_options, differentiable, unflatten
from ibnn_jax.nemon.weights import check_gamma, check_kernel
from ibnn_jax.nn.recipe import saveable


class Equilibrium(nnx.Module):
    """What the layers share: z = phi(A z + B x + b) with Params B and b.

    Args:
        example: a matrix of the kind of A, of any size.
        activation: phi, elementwise, nondecreasing, of slope at most 1.
        solver, adjoint, tol, max_steps: as in `nemon.fixed_point`.

    Raises:
        ValueError: an option that `nemon.fixed_point` would refuse whatever x is.
    """

    B: nnx.Param
    b: nnx.Param

    def __init__(
        self,
        example: Array | AbstractMatrix,
        *,
        activation: Callable[[Array], Array] = nnx.relu,
        solver: AbstractSolver | str = "auto",
        adjoint: AbstractAdjoint | None = None,
        tol: float | None = None,
        max_steps: int | None = None,
    ):
        self.tol, self.max_steps = check_options(
            example, activation, solver, adjoint, tol, max_steps
        )
        self.activation = activation
        self.solver, self.adjoint = solver, adjoint

    @abstractmethod
    def matrix(self) -> Array | AbstractMatrix:
        """A, well-posed whatever the parameters are."""

    @abstractmethod
    def _weighed(self, x, B) -> Array:
        """B x for this B or its absolute values."""

    def affine(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """u = B x + b."""
        u = self._weighed(x, self.B[...])
        return u + jnp.broadcast_to(self.b[...], u.shape)

    def _affine_interval(self, x_lo, x_hi) -> tuple[Array, Array]:
        """Bounds on u."""
        centre = self.affine((x_lo + x_hi) / 2)
        radius = self._weighed((x_hi - x_lo) / 2, jnp.abs(self.B[...]))
        return centre - radius, centre + radius

    @property
    def eta(self) -> Float[Array, "c"]:
        """The weights of the norm."""
        return jnp.ones_like(self.b[...])  # pyright: ignore

    def _certified(self) -> bool | None:
        """True where it is not mu(A) < 1 that makes z unique."""
        return None

    def __call__(
        self, x: Float[Array, "..."], *, return_stats: bool = False
    ) -> Float[Array, "..."] | tuple[Float[Array, "..."], Stats]:
        """z for every x; with return_stats, (z, Stats) with one entry per z."""
        u = self.affine(x)
        problem = bind(
            self._lay_out(u), u, self.activation, self.eta, self._certified()
        )
        solution = differentiable(
            problem, self.solver, self.adjoint, self.tol, self.max_steps
        )
        solution = unflatten(solution, problem, u)
        return (solution.value, solution.stats) if return_stats else solution.value

    @full_precision
    def interval(
        self, x_lo: Float[Array, "..."], x_hi: Float[Array, "..."]
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """(z_lo, z_hi) around z for all x_lo <= x <= x_hi, by the embedded network.

        Raises:
            ValueError: as `nemon.interval`.
        """
        u_lo, u_hi = self._affine_interval(x_lo, x_hi)
        return nemon.interval(
            self._lay_out(u_lo),
            u_lo,
            u_hi,
            self.activation,
            self.eta,
            # Not the layer's own: a splitting for MON need not converge on it.
            solver="auto",
            adjoint=self.adjoint,
            tol=self.tol,
            max_steps=self.max_steps,
        )

    def _lay_out(self, u) -> Array | AbstractMatrix:
        """A for inputs of the shape of u."""
        return self.matrix()


class DenseEquilibrium(Equilibrium):
    """A layer with dense Params B [features, in_features] and b [features]."""

    def __init__(self, in_features, features, rngs, **options):
        super().__init__(jnp.zeros((1, 1), jnp.float32), **options)
        _check_sizes(in_features=in_features, features=features)
        self.B = nnx.Param(normal(rngs, (features, in_features), in_features**-0.5))
        self.b = nnx.Param(jnp.zeros(features, jnp.float32))

    def _weighed(self, x, B):
        return x @ B.T


@saveable
class NEMON(DenseEquilibrium):
    """z = phi(A z + B x + b) with mu(A) <= gamma in the norm weighted by exp(log_eta).

    A = diag(eta) T diag(1/eta) - diag(sum_j |T_ij|) + gamma I; any T and log_eta give
    exactly one z.

    Args:
        in_features, features: sizes; x [..., in_features] -> z [..., features].
        gamma: the bound on mu(A), below 1. Smaller is more robust and faster, larger is
            more expressive.
        rngs: random streams.
        options: activation (ReLU), solver, adjoint, tol and max_steps of
            `nemon.fixed_point`.

    Raises:
        ValueError: gamma is not below 1, phi is not admissible, or an option that
            `nemon.fixed_point` refuses.

    Example:
        layer = ibnn_jax.NEMON(784, 100, gamma=0.0, rngs=nnx.Rngs(0))
        z = layer(x)
        paper, componentwise = layer.lipschitz(readout)  # readout [classes, 100]
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        gamma: float = 0.0,
        rngs: nnx.Rngs,
        **options,
    ):
        check_gamma(gamma)
        super().__init__(in_features, features, rngs, **options)
        self.T = nnx.Param(normal(rngs, (features, features), 1 / features))
        self.log_eta = nnx.Param(jnp.zeros(features, jnp.float32))
        self.gamma = python_number(gamma)

    @property
    def eta(self):
        return jnp.exp(self.log_eta[...])

    def matrix(self) -> Float[Array, "n n"]:
        """A, with mu(A) <= gamma."""
        return nemon.contractive(self.T[...], self.log_eta[...], self.gamma)

    def lipschitz(
        self, C: Float[Array, "q n"]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """`nemon.lipschitz` of x -> C z."""
        return nemon.lipschitz(self.matrix(), self.B[...], C, self.eta, self.gamma)

    def regulariser(self, C: Float[Array, "q n"]) -> Float[Array, ""]:
        """`nemon.regulariser` of x -> C z."""
        return nemon.regulariser(self.B[...], C, self.eta, self.gamma)


@saveable
class NEMONConv(Equilibrium):
    """z = phi(A z + B x + b) with A and B zero-padded convolutions and mu(A) <= gamma.

    A has stride 1; its row sums, over taps and input channels, enter the
    parametrisation, so mu(A) <= gamma holds for every size of the map. eta has one
    weight per channel.

    Args:
        in_features, features: channels; x [..., rows, columns, in_features] -> z [...,
            rows', columns', features].
        kernel_size: rows and columns of both kernels, odd.
        strides: of B.
        gamma, rngs, options: as in `NEMON`.

    Raises:
        ValueError: as `NEMON`; an even kernel_size.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        kernel_size: tuple[int, int],
        *,
        strides: int = 1,
        gamma: float = 0.0,
        rngs: nnx.Rngs,
        **options,
    ):
        check_gamma(gamma)
        one_tap = jnp.zeros((1, 1, 1, 1), jnp.float32)
        super().__init__(nemon.Convolution(one_tap, (1, 1)), **options)
        _check_sizes(in_features=in_features, features=features)
        if np.shape(kernel_size) != (2,):
            raise ValueError(
                f"kernel_size must be (rows, columns), e.g. (3, 3); got {kernel_size!r}"
            )
        h, w = kernel_size
        taps = h * w
        inside, outside = (h, w, features, features), (h, w, in_features, features)
        self.T = nnx.Param(normal(rngs, inside, 1 / (taps * features)))
        check_kernel(self.T[...])
        self.log_eta = nnx.Param(jnp.zeros(features, jnp.float32))
        self.B = nnx.Param(normal(rngs, outside, (taps * in_features) ** -0.5))
        self.b = nnx.Param(jnp.zeros(features, jnp.float32))
        self.gamma, self.strides = python_number(gamma), check_count("strides", strides)

    @property
    def eta(self):
        return jnp.exp(self.log_eta[...])

    def kernel(self) -> Float[Array, "h w c c"]:
        """The kernel of A."""
        return nemon.contractive_kernel(self.T[...], self.log_eta[...], self.gamma)

    def matrix(self, sides: tuple[int, int] = (1, 1)) -> AbstractMatrix:
        """A on maps of these rows and columns."""
        return nemon.Convolution(self.kernel(), sides)

    def lipschitz(
        self, C: Float[Array, "q rows columns channels"]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """As `NEMON.lipschitz`; row sums over taps, so it holds for every map."""
        summary = self.matrix().summary()
        B, C = self._row_sums(C)
        return nemon.lipschitz(summary, B, C, self.eta, self.gamma)

    def regulariser(
        self, C: Float[Array, "q rows columns channels"]
    ) -> Float[Array, ""]:
        """As `NEMON.regulariser`."""
        B, C = self._row_sums(C)
        return nemon.regulariser(B, C, self.eta, self.gamma)

    def _row_sums(self, C):
        """|B| and |C| with one row or column per channel."""
        return jnp.abs(self.B[...]).sum((0, 1)).T, jnp.abs(C).sum((1, 2))

    def _lay_out(self, u):
        return self.matrix(u.shape[-3:-1])

    def _weighed(self, x, B):
        return _convolve(x, B, self.strides)


def _check_sizes(**sizes) -> None:
    for name, size in sizes.items():
        check_count(name, size)


def _convolve(x, kernel, strides):
    dtype = jnp.promote_types(x.dtype, kernel.dtype)
    x, kernel = jnp.asarray(x, dtype), kernel.astype(dtype)
    maps = x.reshape(-1, *x.shape[-3:])
    out = jax.lax.conv_general_dilated(
        maps,
        kernel,
        (strides, strides),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return out.reshape(*x.shape[:-3], *out.shape[1:])


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float) -> Array:
    """Initial values from N(0, std^2), float32."""
    return float(std) * jax.random.normal(rngs.params(), shape, jnp.float32)
