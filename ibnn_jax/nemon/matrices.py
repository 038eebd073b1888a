"""The matrix A of z = phi(A z + u): dense, or a zero-padded convolution of stride 1."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Self

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ibnn_jax.core.options import real_array
from ibnn_jax.nemon.weights import check_kernel, matrix_measure, metzler


class AbstractMatrix(ABC):
    """A linear map on rows z [G, n], each row the last axes of u flattened."""

    event: tuple[int, ...]  # the shape of one z

    @abstractmethod
    def apply(self, z: Float[Array, "G n"]) -> Float[Array, "G n"]:
        """A z, row by row."""

    @abstractmethod
    def apply_transpose(self, w: Float[Array, "G n"]) -> Float[Array, "G n"]:
        """A^T w, row by row."""

    @abstractmethod
    def diagonal(self) -> Float[Array, "n"]:
        """a_ii."""

    @abstractmethod
    def summary(self) -> Float[Array, "c c"]:
        """A small matrix of equal mu: itself, or one entry for a pair of channels."""

    @abstractmethod
    def embedded(self) -> Self:
        """[[P, N], [N, P]]: P the diagonal and positive part, N the rest of A."""

    @abstractmethod
    def astype(self, dtype) -> Self:
        """The same in another precision."""

    @property
    @abstractmethod
    def dtype(self) -> jnp.dtype:
        """The precision."""

    def measure(self, eta: Float[Array, "c"]) -> Float[Array, ""]:
        """mu(A) in the norm weighted by eta, one weight per unit or channel."""
        return matrix_measure(jax.lax.stop_gradient(self.summary()), eta)


@partial(jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=[])
@dataclass(frozen=True)
class DenseMatrix(AbstractMatrix):
    """Any square matrix."""

    array: Float[Array, "n n"]

    @property
    def event(self):
        return self.array.shape[:1]

    @property
    def dtype(self):
        return self.array.dtype

    def astype(self, dtype):
        return DenseMatrix(self.array.astype(dtype))

    def apply(self, z):
        return z @ self.array.T

    def apply_transpose(self, w):
        return w @ self.array

    def diagonal(self):
        return jnp.diagonal(self.array)

    def summary(self):
        return self.array

    def embedded(self):
        A = self.array
        positive, negative = _split(A, jnp.eye(len(A), dtype=bool))
        return DenseMatrix(jnp.block([[positive, negative], [negative, positive]]))


@partial(
    jax.tree_util.register_dataclass, data_fields=["kernel"], meta_fields=["sides"]
)
@dataclass(frozen=True)
class Convolution(AbstractMatrix):
    """A zero-padded convolution of stride 1 on maps [rows, columns, channels].

    Args:
        kernel: [h, w, channels, channels], the last two from and to; h and w odd.
        sides: rows and columns of the map.

    Solving with it raises ValueError where the kernel is not as said.
    """

    kernel: Float[Array, "h w c c"]
    sides: tuple[int, int]

    @property
    def event(self):
        return (*self.sides, self.kernel.shape[3])

    @property
    def dtype(self):
        return self.kernel.dtype

    def astype(self, dtype):
        return Convolution(self.kernel.astype(dtype), self.sides)

    def apply(self, z):
        return self._convolve(z, self.kernel)

    def apply_transpose(self, w):
        return self._convolve(w, self.kernel[::-1, ::-1].swapaxes(2, 3))

    def diagonal(self):
        h, w = self.kernel.shape[:2]
        per_channel = jnp.diagonal(self.kernel[h // 2, w // 2])
        return jnp.tile(per_channel, prod(self.sides))

    def summary(self):
        # Entry (o, i) sums |K[.., i, o]| over taps; the diagonal of A keeps its sign.
        h, w, channels, _ = self.kernel.shape
        centre = metzler(self.kernel[h // 2, w // 2].T)
        around = jnp.abs(self.kernel).at[h // 2, w // 2].set(0).sum((0, 1)).T
        # A channel also acts on itself from other places: off the diagonal of A.
        return centre + around

    def embedded(self):
        h, w, channels, _ = self.kernel.shape
        diagonal = jnp.zeros(self.kernel.shape, bool)
        diagonal = diagonal.at[h // 2, w // 2].set(jnp.eye(channels, dtype=bool))
        positive, negative = _split(self.kernel, diagonal)
        both = jnp.concatenate([positive, negative], 3)
        swapped = jnp.concatenate([negative, positive], 3)
        return Convolution(jnp.concatenate([both, swapped], 2), self.sides)

    def _convolve(self, z, kernel):
        maps = z.reshape(z.shape[0], *self.event)
        out = jax.lax.conv_general_dilated(
            maps, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return out.reshape(z.shape)


def as_matrix(A: Array | AbstractMatrix) -> AbstractMatrix:
    """A as a matrix of this file.

    Raises:
        ValueError: A is neither a square floating array nor a Convolution with a kernel
            that fits.
    """
    if isinstance(A, Convolution):
        check_kernel(A.kernel)
        return A
    if isinstance(A, AbstractMatrix):
        return A
    A = real_array("A", A)
    square = A.ndim == 2 and A.shape[0] == A.shape[1] and A.size > 0
    if not square or not jnp.issubdtype(A.dtype, jnp.floating):
        raise ValueError(
            f"A must be a square floating matrix; got {A.dtype}{list(A.shape)}"
        )
    return DenseMatrix(A)


def _split(A, diagonal):
    """(the diagonal and what is positive, what is negative off the diagonal)."""
    negative = jnp.where(diagonal, 0, jnp.minimum(A, 0))
    return A - negative, negative
