"""The changes of the images that an attack may make: within eps, within the bounds."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

FIELDS = ["centre", "eps", "low", "high"]
TINY = 1e-12  # lengths below this one are not divided by


@dataclass(frozen=True)
class Ball(ABC):
    """The images within eps of the clean ones, and within the bounds.

    Where a clean image lies outside of the bounds, the two may have nothing in common.
    The ball then comes first, and the point in it that is nearest to the bounds counts.

    centre: the clean images [N, ...]. eps: the radius, a scalar; a negative or NaN one
    counts as 0. low, high: the bounds, of the rank of the images.

    norm: the name, which tells the kinds apart. JAX (0.10 to 0.12) takes the tree
    structures of two registered classes with equal fields for equal, and may then run
    what it compiled for the other.
    """

    centre: Float[Array, "N ..."]
    eps: Float[Array, ""]
    low: Float[Array, "..."]
    high: Float[Array, "..."]

    @property
    def radius(self) -> Float[Array, ""]:
        return jnp.where(self.eps > 0, self.eps, 0)

    @abstractmethod
    def project(self, x: Float[Array, "N ..."]) -> Float[Array, "N ..."]:
        """Images near x that may be used."""

    @abstractmethod
    def sample(self, key: Array) -> Float[Array, "N ..."]:
        """Random images, uniform in the ball before they are projected."""

    @abstractmethod
    def direction(self, gradient: Float[Array, "N ..."]) -> Float[Array, "N ..."]:
        """The change of size 1 that raises the loss most."""


@partial(jax.tree_util.register_dataclass, data_fields=FIELDS, meta_fields=["norm"])
@dataclass(frozen=True)
class Linf(Ball):
    """No pixel changes by more than eps."""

    norm: str = "linf"

    def project(self, x):
        smallest, largest = self.centre - self.radius, self.centre + self.radius
        low = jnp.clip(self.low, smallest, largest)
        high = jnp.clip(self.high, smallest, largest)
        return jnp.clip(x, low, high)

    def sample(self, key):
        shape, dtype = self.centre.shape, self.centre.dtype
        noise = jax.random.uniform(key, shape, dtype, minval=-1, maxval=1)
        return self.project(self.centre + self.radius * noise)

    def direction(self, gradient):
        return jnp.sign(gradient)


@partial(jax.tree_util.register_dataclass, data_fields=FIELDS, meta_fields=["norm"])
@dataclass(frozen=True)
class L2(Ball):
    """The Euclidean length of the change is at most eps.

    In float32 at least: in less, squares of small and of many numbers leave its range.
    """

    norm: str = "l2"

    def project(self, x):
        return _widened(self)._project(_widened(x)).astype(x.dtype)

    def _project(self, x):
        change = self._shorten(x - self.centre)
        x = jnp.clip(self.centre + change, self.low, self.high)
        # An image within the bounds is done: the clip has shortened its change. Any
        # other one goes to the nearest place within the bounds, and on towards x, as
        # far as the ball allows.
        inside = jnp.clip(self.centre, self.low, self.high)
        entry = self._shorten(inside - self.centre)
        way = x - inside
        x = self.centre + entry + self._share(entry, way) * way
        low = jnp.minimum(self.low, self.centre)
        return jnp.clip(x, low, jnp.maximum(self.high, self.centre))  # rounding

    def _shorten(self, change):
        return change * jnp.minimum(1, self.radius / _length(change))

    def _share(self, entry, way):
        """The largest t <= 1 with |entry + t way| <= eps."""
        square = jnp.maximum(_dot(way, way), TINY)
        along = _dot(entry, way)
        left = jnp.maximum(self.radius**2 - _dot(entry, entry), 0)
        return jnp.minimum(1, (jnp.sqrt(along**2 + square * left) - along) / square)

    def sample(self, key):
        ball, shape = _widened(self), self.centre.shape
        direction, radius = jax.random.split(key)
        noise = jax.random.normal(direction, shape, ball.centre.dtype)
        lengths, pixels = shape[:1] + (1,) * (len(shape) - 1), prod(shape[1:])
        share = jax.random.uniform(radius, lengths, noise.dtype) ** (1 / pixels)
        change = ball.radius * share * ball.direction(noise)
        return ball._project(ball.centre + change).astype(self.centre.dtype)

    def direction(self, gradient):
        # The gradient of a confident network is so small that its square is 0.
        wide, axes = _widened(gradient), tuple(range(1, gradient.ndim))
        largest = jnp.abs(wide).max(axes, keepdims=True)
        scaled = wide / jnp.where(largest > 0, largest, 1)
        return (scaled / _length(scaled)).astype(gradient.dtype)


def _widened(tree):
    """Every leaf in float32 at least."""
    return jax.tree.map(
        lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree
    )


def _dot(a, b):
    """The inner product of each image, [N, 1, ...]."""
    return (a * b).sum(tuple(range(1, a.ndim)), keepdims=True)


def _length(a):
    return jnp.maximum(jnp.sqrt(_dot(a, a)), TINY)
