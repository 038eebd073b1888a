"""UCN(L, C), the paper's uniform convolutional network, with implicit-bias or standard neurons."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from ibnn_jax.couplings import Coupling, Uniform
from ibnn_jax.layers import ImplicitBias


def _normal(mean, std):
    return lambda key, shape, dtype=jnp.float32, **_: (
        mean + std * jax.random.normal(key, shape, dtype)
    )


class Block(nnx.Module):
    """conv (same size, zero padding) -> implicit bias, unless standard -> ReLU -> batch norm."""

    def __init__(
        self,
        in_channels,
        channels,
        kernel_size,
        *,
        dtype,
        axis_name,
        conv_general_dilated,
        rngs,
    ):
        self.conv = nnx.Conv(
            in_channels,
            channels,
            kernel_size,
            padding="SAME",
            dtype=dtype,
            conv_general_dilated=conv_general_dilated,
            kernel_init=_normal(0, 1e-3),
            bias_init=_normal(0, 1e-3),
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(
            channels,
            momentum=0.9,
            epsilon=1e-5,
            dtype=dtype,
            axis_name=axis_name,
            scale_init=_normal(1, 5e-4),
            bias_init=_normal(0, 5e-4),
            rngs=rngs,
        )
        self.implicit = nnx.data(None)  # UCN puts an ImplicitBias here

    def __call__(self, x, *, return_stats=False):
        z, stats = self.conv(x), None
        if self.implicit is not None:
            z = self.implicit(z, return_stats=return_stats)
            if return_stats:
                z, stats = z
        return self.norm(nnx.relu(z)), stats


class UCN(nnx.Module):
    """UCN(L, C): L blocks of conv -> implicit bias -> ReLU -> batch norm, then one linear head (paper, Methods).

    `implicit=False` is the standard-model (SM) twin: the same parameters without lam, and, from the same rngs, the
    same initial values. Parameters start as in the authors' code: convolutions N(0, 1e-3), batch norm and head
    N(their usual mean, 5e-4), standard deviations; y = Mx - b is written with c = -b.

    Args:
        image_shape: (H, W, channels) of the input, e.g. (28, 28, 1).
        classes: size of the output.
        layers: L. channels: C.
        implicit: implicit-bias neurons, or standard ones.
        kernel_size: side of the square filters; None takes the paper's round(0.15 * size) of each axis, at least 1.
        dtype: of the computation outside the solver, e.g. jnp.bfloat16; parameters and solver stay float32.
        axis_name: name of a mapped axis that the batch is spread over: batch norm then takes the whole batch's statistics.
        conv_general_dilated: of every nnx.Conv; `canonical_convolution` where a loop or a vmap over seeds trains on a CPU.
        lam, p, train_lam, train_p, per_channel, coupling, constraint, lite, solver, adjoint, tol, max_steps: of every
            `ImplicitBias`; per_channel=True gives one lam per channel. Ignored by the twin.

    Raises:
        ValueError: image_shape is not three positive sizes, or layers, channels or classes is less than 1.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        *,
        layers: int = 1,
        channels: int = 3,
        implicit: bool = True,
        kernel_size: int | None = None,
        dtype=None,
        axis_name: str | None = None,
        conv_general_dilated: Callable = jax.lax.conv_general_dilated,
        lam: float | Array | None = None,
        p: float = 10.0,
        train_lam: bool = True,
        train_p: bool = False,
        per_channel: bool = False,
        coupling: Coupling | None = None,
        constraint: str | None = "unique",
        lite: bool = False,
        solver="auto",
        adjoint=None,
        tol: float | None = None,
        max_steps: int | None = None,
        rngs: nnx.Rngs,
    ):
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise ValueError(
                f"image_shape must be (height, width, channels), all positive; got {image_shape}"
            )
        if min(layers, channels, classes) < 1:
            raise ValueError(
                f"layers, channels and classes must be at least 1; got {layers}, {channels}, {classes}"
            )
        height, width, in_channels = image_shape
        kernel = tuple(kernel_size or max(1, round(0.15 * s)) for s in (height, width))
        self.blocks = nnx.List(
            [
                Block(
                    channels if i else in_channels,
                    channels,
                    kernel,
                    dtype=dtype,
                    axis_name=axis_name,
                    conv_general_dilated=conv_general_dilated,
                    rngs=rngs,
                )
                for i in range(layers)
            ]
        )
        self.head = nnx.Linear(
            height * width * channels,
            classes,
            dtype=dtype,
            kernel_init=_normal(0, 5e-4),
            bias_init=_normal(0, 5e-4),
            rngs=rngs,
        )
        for block in (
            self.blocks if implicit else ()
        ):  # last, so that the twin draws the same values
            block.implicit = ImplicitBias(
                coupling=Uniform((-3, -2)) if coupling is None else coupling,
                channels=channels if per_channel else None,
                lam=lam,
                p=p,
                train_lam=train_lam,
                train_p=train_p,
                constraint=constraint,
                lite=lite,
                solver=solver,
                adjoint=adjoint,
                tol=tol,
                max_steps=max_steps,
                rngs=rngs,
            )

    def __call__(self, images: Float[Array, "N H W in"], *, return_stats: bool = False):
        """Logits [N, classes] of images in [0, 1]; with return_stats, (logits, one `Stats` per implicit layer)."""
        x, stats = images, []
        for block in self.blocks:
            x, layer_stats = block(x, return_stats=return_stats)
            stats.append(layer_stats)
        logits = self.head(x.reshape(len(x), -1))
        return (
            (logits, tuple(s for s in stats if s is not None))
            if return_stats
            else logits
        )

    def lams(self) -> tuple[Array, ...]:
        """The current lam of each implicit layer, in order; empty for the SM twin."""
        return tuple(
            block.implicit.lam[...]
            for block in self.blocks
            if block.implicit is not None
        )


def transfer(sm: UCN, ibnn: UCN) -> None:
    """Copy convolutions, batch norm (running statistics too) and head of `sm` into `ibnn`, in place; lam stays.

    How an IBNN starts from a trained standard network (paper, Supplementary Information, and its warm-up).

    Raises:
        ValueError: the two networks differ in layers, channels, kernel or classes.
    """
    if len(sm.blocks) != len(ibnn.blocks):
        raise ValueError(
            f"transfer: the networks have {len(sm.blocks)} and {len(ibnn.blocks)} layers"
        )
    pairs = [(sm.head, ibnn.head)]
    for a, b in zip(sm.blocks, ibnn.blocks):
        pairs += [(a.conv, b.conv), (a.norm, b.norm)]
    for source, target in pairs:
        state = nnx.state(source)
        shapes = [
            jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(m)))
            for m in (source, target)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(f"transfer: shapes differ, {shapes[0]} into {shapes[1]}")
        nnx.update(target, state)
