"""UCN(L, C), the paper's uniform convolutional network, of any kind of neuron."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from ibnn_jax.core.options import check_count
from ibnn_jax.core.solution import Stats
from ibnn_jax.nn.convolution import general_convolution
from ibnn_jax.nn.implicit_bias import ImplicitBias
from ibnn_jax.nn.recipe import saveable


def _normal(key, shape, dtype=jnp.float32, *, mean: float, std: float, **_) -> Array:
    return mean + std * jax.random.normal(key, shape, dtype)


class Block(nnx.Module):
    """conv (same size, zero padding) -> the neurons' bias -> ReLU -> batch norm."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: tuple[int, int],
        *,
        dtype: Any,
        axis_name: str | None,
        conv_general_dilated: Callable,
        rngs: nnx.Rngs,
    ):
        small = partial(_normal, mean=0, std=1e-3)
        self.conv = nnx.Conv(
            in_channels,
            channels,
            kernel_size,
            padding="SAME",
            dtype=dtype,
            conv_general_dilated=conv_general_dilated,
            kernel_init=small,
            bias_init=small,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(
            channels,
            momentum=0.9,
            epsilon=1e-5,
            dtype=dtype,
            axis_name=axis_name,
            scale_init=partial(_normal, mean=1, std=5e-4),
            bias_init=partial(_normal, mean=0, std=5e-4),
            rngs=rngs,
        )
        self.implicit: Any = nnx.data(None)  # UCN puts the neurons here

    def __call__(self, x: Array, *, return_stats: bool = False):
        """(the block's output, Stats of its neurons or None)."""
        z, stats = self.conv(x), None
        if self.implicit is not None:
            z = self.implicit(z, return_stats=return_stats)
            if return_stats:
                z, stats = z
        return self.norm(nnx.relu(z)), stats


@saveable
class UCN(nnx.Module):
    """UCN(L, C): L blocks of conv -> neurons -> ReLU -> batch norm, then a linear head.

    The network of the paper's Methods. Parameters start as in the authors' code:
    convolutions N(0, 1e-3), batch norm and head N(their usual mean, 5e-4), standard
    deviations; y = Mx - b is written with c = -b.

    Args:
        image_shape: (H, W, channels) of the input, e.g. (28, 28, 1).
        classes: size of the output.
        layers: L. channels: C.
        neuron: what stands between a convolution and its ReLU, called as
            neuron(rngs=rngs) once per block; e.g. `partial(ImplicitBias, lam=-0.5)`.
            None is the standard-model (SM) twin: the same parameters without lam and,
            from the same rngs, the same initial values.
        kernel_size: side of the square filters; None takes the paper's
            round(0.15 * size) of each axis, at least 1.
        dtype: of the computation outside the solver, e.g. jnp.bfloat16; parameters and
            solver stay float32.
        axis_name: name of a mapped axis that the batch is spread over: batch norm then
            takes the whole batch's statistics.
        conv_general_dilated: of every nnx.Conv; `canonical_convolution` where a loop or
            a vmap over seeds trains on a CPU (`nn.fast_convolution()` chooses).
        rngs: random streams.
        implicit: deprecated; False is neuron=None.

    Raises:
        ValueError: image_shape is not three positive sizes, or layers, channels or
            classes is less than 1.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        *,
        layers: int = 1,
        channels: int = 3,
        neuron: Callable[..., nnx.Module] | None = ImplicitBias,
        kernel_size: int | None = None,
        dtype: Any = None,
        axis_name: str | None = None,
        conv_general_dilated: Callable = general_convolution,
        rngs: nnx.Rngs,
        implicit: bool | None = None,
    ):
        if np.shape(image_shape) != (3,) or min(image_shape) < 1:
            raise ValueError(
                "image_shape must be (height, width, channels), all positive; "
                f"got {image_shape}"
            )
        layers = check_count("layers", layers)
        channels = check_count("channels", channels)
        classes = check_count("classes", classes)
        if kernel_size is not None:
            kernel_size = check_count("kernel_size", kernel_size)
        if not (neuron is None or callable(neuron)) or isinstance(neuron, nnx.Module):
            raise ValueError(
                "neuron makes a neuron, as partial(ibnn_jax.ImplicitBias, lam=-0.5) "
                f"does, or is None; got {neuron!r:.60}"
            )
        if implicit is not None:
            warnings.warn(
                "UCN(implicit=...) will go; use neuron=None for the standard twin",
                DeprecationWarning,
                stacklevel=2,
            )
            neuron = neuron if implicit else None
        self.image_shape = height, width, in_channels = tuple(image_shape)
        kernel = tuple(kernel_size or max(1, round(0.15 * s)) for s in (height, width))
        self.blocks = nnx.List(
            [
                Block(
                    channels if i else in_channels,
                    channels,
                    (kernel[0], kernel[1]),
                    dtype=dtype,
                    axis_name=axis_name,
                    conv_general_dilated=conv_general_dilated,
                    rngs=rngs,
                )
                for i in range(layers)
            ]
        )
        small = partial(_normal, mean=0, std=5e-4)
        self.head = nnx.Linear(
            height * width * channels,
            classes,
            dtype=dtype,
            kernel_init=small,
            bias_init=small,
            rngs=rngs,
        )
        if neuron is not None:  # last, so that the twin draws the same values
            for block in self.blocks:
                block.implicit = neuron(rngs=rngs)

    @overload
    def __call__(
        self, images: Array, *, return_stats: Literal[True]
    ) -> tuple[Array, tuple[Stats, ...]]: ...
    @overload
    def __call__(self, images: Array, *, return_stats: bool = False) -> Array: ...
    def __call__(self, images: Float[Array, "N H W in"], *, return_stats: bool = False):
        """Logits [N, classes] of images in [0, 1].

        With return_stats, (logits, one `Stats` per layer of implicit neurons).

        Raises:
            ValueError: images are integers, or not [N, *image_shape].
        """
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images must be floating point in [0, 1]; got {images.dtype}. "
                "For bytes: images.astype(jnp.float32) / 255"
            )
        if images.shape[1:] != self.image_shape:
            raise ValueError(
                f"images must be [N, height, width, channels] with {self.image_shape}; "
                f"got {images.shape}"
            )
        x, stats = images, []
        for block in self.blocks:
            x, layer_stats = block(x, return_stats=return_stats)
            stats.append(layer_stats)
        _, height, width, channels = x.shape
        logits = self.head(x.reshape(x.shape[0], height * width * channels))
        if return_stats:
            return logits, tuple(s for s in stats if s is not None)
        return logits

    def lams(self) -> tuple[Array, ...]:
        """The current lam of each implicit layer, in order; empty for the SM twin."""
        layers = (block.implicit for block in self.blocks)
        return tuple(layer.lam[...] for layer in layers if hasattr(layer, "lam"))


def transfer(sm: UCN, ibnn: UCN) -> None:
    """Copy convolutions, batch norm (with statistics) and head of `sm` into `ibnn`.

    In place, all or nothing; lam stays. How an IBNN starts from a trained standard
    network (paper, Supplementary Information, and its warm-up).

    Raises:
        ValueError: the two networks differ in layers, channels, kernel or classes.
    """
    if len(sm.blocks) != len(ibnn.blocks):
        raise ValueError(
            f"transfer: the networks have {len(sm.blocks)} and {len(ibnn.blocks)} "
            "layers"
        )
    pairs = [(sm.head, ibnn.head)]
    for a, b in zip(sm.blocks, ibnn.blocks):
        pairs += [(a.conv, b.conv), (a.norm, b.norm)]
    for source, target in pairs:
        shapes = _shapes(source), _shapes(target)
        if shapes[0] != shapes[1]:
            raise ValueError(f"transfer: shapes differ, {shapes[0]} into {shapes[1]}")
    for source, target in pairs:
        nnx.update(target, nnx.state(source))


def _shapes(module: nnx.Module) -> dict:
    return jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(module)))
