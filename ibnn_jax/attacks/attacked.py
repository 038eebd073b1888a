"""What an attack returns, and which of two versions of an image is the worse one for the network."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float, Int


class Attacked(NamedTuple):
    """The worst version of every image that was found."""

    images: Float[Array, "N ..."]
    loss: Float[
        Array, "N"
    ]  # cross-entropy there; not finite only where no version of the image has a finite one
    fooled: Bool[
        Array, "N"
    ]  # the prediction there is not the label (clean images already misclassified included)


def judge(
    logits: Callable[[Array], Array],
    images: Float[Array, "N ..."],
    labels: Int[Array, "N"],
) -> Attacked:
    """One evaluation of the network. A non-finite loss fools nobody: it is a broken network, not a success."""
    scores = logits(images)
    loss = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
    return Attacked(images, loss, (scores.argmax(-1) != labels) & jnp.isfinite(loss))


def worse(a: Attacked, b: Attacked) -> Bool[Array, "N"]:
    """Whether a is worse for the network than b: it fools it and b does not, or the loss decides. Never where a's is not finite."""
    a_worse = (
        (a.fooled & ~b.fooled)
        | ((a.fooled == b.fooled) & (a.loss > b.loss))
        | ~jnp.isfinite(b.loss)
    )
    return a_worse & jnp.isfinite(a.loss)
