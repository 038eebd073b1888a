"""What an equilibrium layer is given of an image, with bounds on it."""

from math import prod

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from ibnn_jax.core.batching import full_precision
from ibnn_jax.core.options import check_count
from ibnn_jax.nn.recipe import saveable

SIDE, STRIDE = 4, 2  # of every kernel


class Pixels(nnx.Module):
    """The pixels as one vector."""

    def __init__(self, image_shape: tuple[int, ...], *, rngs: nnx.Rngs):
        self.features = prod(image_shape)

    def __call__(self, x: Float[Array, "N ..."]) -> Float[Array, "N features"]:
        return x.reshape(x.shape[0], self.features)

    def interval(
        self, lo: Float[Array, "N ..."], hi: Float[Array, "N ..."]
    ) -> tuple[Float[Array, "N features"], Float[Array, "N features"]]:
        return self(lo), self(hi)

    def lipschitz(self) -> float:
        return 1.0


@saveable
class ConvolutionalFront(nnx.Module):
    """x <- relu(K x + k), once for each entry of channels, then all maps in one vector.

    K is a convolution with 4 x 4 kernels of stride 2 without padding, so maps of h rows
    become maps of h // 2 - 1 rows.

    Args:
        image_shape: rows, columns and channels of one image.
        channels: of the maps after each convolution, at least one.
        rngs: random streams.

    Attributes:
        features: the size of the vector.

    Raises:
        ValueError: the images have no three axes, or are too small; channels is empty,
            or holds what is no size.

    Example:
        front = partial(ibnn_jax.ConvolutionalFront, channels=(16, 32))
        model = ibnn_jax.EquilibriumClassifier((28, 28, 1), 10, front=front, rngs=rngs)
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        channels: tuple[int, ...] = (16, 32),
        *,
        rngs: nnx.Rngs,
    ):
        if len(image_shape) != 3:
            raise ValueError(
                f"image_shape must be rows, columns and channels; got {image_shape}"
            )
        if np.ndim(channels) != 1 or len(channels) == 0:
            raise ValueError(
                "channels must be at least one size, e.g. (16, 32); got "
                f"{channels!r}. For the pixels themselves: front=None"
            )
        rows, columns, size = image_shape
        self.convolutions = nnx.List()
        for channel_count in channels:
            wanted = check_count("channels", channel_count)
            rows, columns = rows // STRIDE - 1, columns // STRIDE - 1
            if min(rows, columns) < 1:
                raise ValueError(
                    f"{len(channels)} convolutions leave nothing of images "
                    f"{image_shape}; each needs {SIDE} rows and columns"
                )
            self.convolutions.append(_Convolution(size, wanted, rngs))
            size = wanted
        self.features = rows * columns * size

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N features"]:
        for convolution in self.convolutions:
            x = nnx.relu(convolution(x))
        return x.reshape(x.shape[0], self.features)

    @full_precision
    def interval(
        self, lo: Float[Array, "N H W C"], hi: Float[Array, "N H W C"]
    ) -> tuple[Float[Array, "N features"], Float[Array, "N features"]]:
        """Bounds on the output for all lo <= x <= hi, layer by layer."""
        for convolution in self.convolutions:
            lo, hi = convolution.interval(lo, hi)
            lo, hi = nnx.relu(lo), nnx.relu(hi)
        shape = lo.shape[0], self.features
        return lo.reshape(shape), hi.reshape(shape)

    def lipschitz(self) -> Float[Array, ""]:
        """A Lipschitz bound, l-inf to l-inf: the product of the kernels' row sums."""
        bound = jnp.ones((), self.convolutions[0].kernel.dtype)
        for convolution in self.convolutions:
            bound *= jnp.abs(convolution.kernel[...]).sum(0).max()
        return bound


class _Convolution(nnx.Module):
    """K x + k as one product of the patches of x: fast on CPUs and under vmap too."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        taps = SIDE**2 * inputs
        initial = nnx.initializers.he_normal()
        self.kernel = nnx.Param(initial(rngs.params(), (taps, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32))

    def __call__(self, x):
        return _patches(x) @ self.kernel[...] + self.bias[...]

    def interval(self, lo, hi):
        centre = self((lo + hi) / 2)
        radius = _patches((hi - lo) / 2) @ jnp.abs(self.kernel[...])
        return centre - radius, centre + radius


def _patches(x: Float[Array, "N H W C"]) -> Float[Array, "N h w taps"]:
    """All 4 x 4 patches at every second row and column, each as one vector.

    Made of blocks of 2 x 2 pixels: a patch is four of them, two above two.
    """
    n, rows, columns, channels = x.shape
    rows, columns = rows // STRIDE, columns // STRIDE
    whole = x[:, : STRIDE * rows, : STRIDE * columns]
    split = whole.reshape(n, rows, STRIDE, columns, STRIDE, channels)
    blocks = split.transpose(0, 1, 3, 2, 4, 5).reshape(n, rows, columns, -1)
    corners = [
        blocks[:, i : rows - 1 + i, j : columns - 1 + j] for i in (0, 1) for j in (0, 1)
    ]
    return jnp.concatenate(corners, -1)
