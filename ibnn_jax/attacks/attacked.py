"""What an attack returns, and which of two versions of an image is the worse one."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float, Int

from ibnn_jax.core.batching import select


class Attacked(NamedTuple):
    """The worst version of every image that was found.

    images: of the shape and dtype of the clean ones.
    loss: the cross-entropy there. It is not finite only where no version of the image
        has a finite one, and NaN where the label is not one of the classes.
    fooled: whether the prediction there is not the label. True for clean images that
        are misclassified already, and False where the loss is not finite.
    """

    images: Float[Array, "N ..."]
    loss: Float[Array, "N"]
    fooled: Bool[Array, "N"]


def cross_entropy(
    scores: Float[Array, "N classes"], labels: Int[Array, "N"]
) -> Float[Array, "N"]:
    """-log p(label), one per row; NaN where the label is not one of the classes."""
    known = (labels >= 0) & (labels < scores.shape[1])
    labels = jnp.where(known, labels, 0)
    loss = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
    return jnp.where(known, loss, jnp.nan)


def judge(
    scores: Callable[[Array], Array],
    images: Float[Array, "N ..."],
    labels: Int[Array, "N"],
) -> Attacked:
    """One evaluation of the network.

    A loss that is not finite fools nobody: it is a broken network, not a success.
    """
    logits = scores(images)
    loss = cross_entropy(logits, labels)
    wrong = logits.argmax(-1).astype(labels.dtype) != labels
    fooled = wrong & jnp.isfinite(loss)
    # Where networks differ by device (shard_map), so do the images from here on.
    return Attacked(select(fooled, images, images), loss, fooled)


def worse(a: Attacked, b: Attacked) -> Bool[Array, "N"]:
    """Whether a is worse for the network than b.

    It is if it fools the network and b does not; else the loss decides. A version
    whose loss is not finite is never worse, and one that is finite always worse than
    one that is not.
    """
    fools = a.fooled & ~b.fooled
    costs = (a.fooled == b.fooled) & (a.loss > b.loss)
    return (fools | costs | ~jnp.isfinite(b.loss)) & jnp.isfinite(a.loss)


def untouched(images: Float[Array, "0 ..."]) -> Attacked:
    """The result of an attack on no images."""
    return Attacked(images, jnp.zeros(0, images.dtype), jnp.zeros(0, bool))
