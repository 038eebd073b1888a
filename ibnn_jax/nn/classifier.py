"""A classifier with one equilibrium layer, with its bounds and certificates."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from ibnn_jax import nemon
from ibnn_jax.core.options import is_known
from ibnn_jax.core.solution import Stats
from ibnn_jax.nn.front import Pixels
from ibnn_jax.nn.nemon import NEMON
from ibnn_jax.nn.recipe import saveable


@saveable
class EquilibriumClassifier(nnx.Module):
    """y = C z + c with z = phi(A z + B x + b) and x an image: its pixels, or a front's.

    Args:
        image_shape: of one image; images [N, *image_shape].
        classes: the number of logits.
        features: the size of z.
        layer: called as layer(size of x, features, rngs=rngs): `NEMON`, a
            `functools.partial` of it, or one of its rivals `NormBounded` and `MON`.
        front: called as front(image_shape, rngs=rngs): `ConvolutionalFront` or a
            `functools.partial` of it, whose output is x; None takes the pixels.
        rngs: random streams.

    Example:
        layer = partial(ibnn_jax.NEMON, gamma=0.0)
        model = ibnn_jax.EquilibriumClassifier((28, 28), 10, layer=layer, rngs=rngs)
        logits = model(images)
        certified = model.certified(images, labels, eps=0.1)
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        classes: int,
        *,
        features: int = 100,
        layer: Callable[..., Any] = NEMON,
        front: Callable[..., Any] | None = None,
        rngs: nnx.Rngs,
    ):
        front = Pixels if front is None else front
        self.front = front(image_shape, rngs=rngs)
        self.layer = layer(self.front.features, features, rngs=rngs)
        self.readout = nnx.Linear(features, classes, rngs=rngs)

    def __call__(
        self, images: Float[Array, "N ..."], *, return_stats: bool = False
    ) -> Float[Array, "N q"] | tuple[Float[Array, "N q"], list[Stats]]:
        """The logits; with return_stats, (logits, [Stats of the layer])."""
        if not return_stats:
            return self.readout(self.layer(self.front(images)))
        z, stats = self.layer(self.front(images), return_stats=True)
        return self.readout(z), [stats]

    @property
    def C(self) -> Float[Array, "q n"]:
        """The matrix of the readout."""
        return self.readout.kernel[...].T

    def lipschitz(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """`nemon.lipschitz` from pixels to logits, times the front's bound."""
        front = self.front.lipschitz()
        paper, componentwise = self.layer.lipschitz(self.C)
        return front * paper, front * componentwise

    def regulariser(self) -> Float[Array, ""]:
        """`nemon.regulariser` from pixels to logits, times the front's bound."""
        return self.front.lipschitz() * self.layer.regulariser(self.C)

    def margins(
        self, images: Float[Array, "N ..."], labels: Int[Array, "N"], eps: float | Array
    ) -> Float[Array, "N q"]:
        """Least y_label - y_k over all images in [0, 1] within eps, by intervals.

        Differentiable: a loss on these margins is certified training.

        Args:
            images: in [0, 1].
            labels: one integer per image.
            eps: how far each pixel may move: one number, or one per image [N].

        Raises:
            ValueError: as `nemon.margins`; eps is negative or of another shape, or
                images leave [0, 1].
        """
        self._check(images, eps)
        if np.ndim(eps):
            eps = jnp.asarray(eps).reshape(-1, *[1] * (images.ndim - 1))
        assert self.readout.bias is not None
        lo, hi = jnp.clip(images - eps, 0, 1), jnp.clip(images + eps, 0, 1)
        z_lo, z_hi = self.layer.interval(*self.front.interval(lo, hi))
        return nemon.margins(self.C, self.readout.bias[...], z_lo, z_hi, labels)

    def certified(
        self, images: Float[Array, "N ..."], labels: Int[Array, "N"], eps: float | Array
    ) -> Bool[Array, "N"]:
        """Whether every image in [0, 1] within eps gets this label; as `margins`."""
        return nemon.certified(self.margins(images, labels, eps), labels)

    def _check(self, images, eps) -> None:
        if np.shape(eps) not in ((), images.shape[:1]):
            raise ValueError(
                f"eps must be one number, or one per image, [{len(images)}]; got shape "
                f"{list(np.shape(eps))}"
            )
        if is_known(eps) and not (np.asarray(eps) >= 0).all():
            raise ValueError(f"eps must be at least 0; got {eps}")
        if not is_known(images) or images.size == 0:
            return
        pixels = np.asarray(images)  # by numpy, since jax computes nothing under jit
        least, most = float(pixels.min()), float(pixels.max())
        if not 0 <= least <= most <= 1:
            raise ValueError(
                f"images must be within [0, 1]; got values from {least:g} to {most:g}"
            )

    def lams(self) -> list[Array]:
        """No implicit bias: none."""
        return []
