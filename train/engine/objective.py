"""What a step of training lowers, and how that changes from epoch to epoch."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, Int

import ibnn_jax
from train.config import Config
from train.engine.schedule import SCHEDULES

# Certified training starts as plain training, widens the boxes over half of the epochs
# and then weighs the certified and the plain loss alike.
PLAIN_EPOCHS, WIDENING = 1, 0.5
CERTIFIED_SHARE = 0.5


class Pace(NamedTuple):
    """What changes from epoch to epoch.

    rate: the learning rate. eps: the radius of the boxes of certified training.
    share: the weight of the certified loss, out of 1.
    """

    rate: Array | np.ndarray
    eps: Array | np.ndarray | float = 0.0
    share: Array | np.ndarray | float = 0.0


def paces(config: Config, epochs: int) -> list[Pace]:
    """The Pace of every epoch of a resolved config."""
    rate = SCHEDULES[config.schedule](epochs, config.lr_min, config.lr_max)
    done = np.clip((np.arange(epochs) + 1 - PLAIN_EPOCHS) / (WIDENING * epochs), 0, 1)
    done = done.astype(np.float32)
    widest = config.train_eps or config.certified_eps
    eps, share = np.float32(widest) * done, CERTIFIED_SHARE * done
    return [Pace(*each) for each in zip(rate, eps, share, strict=True)]


def cross_entropy(
    logits: Float[Array, "N q"], labels: Int[Array, " N"]
) -> Float[Array, " N"]:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def objective(
    config: Config,
    model: ibnn_jax.UCN | ibnn_jax.EquilibriumClassifier,
    images: Float[Array, "N H W C"],
    labels: Int[Array, " N"],
    pace: Pace,
) -> tuple[Float[Array, ""], Float[Array, "N q"]]:
    """(the loss, the logits): cross-entropy and, for nemon, what the config adds.

    The certified loss is the cross-entropy of the worst logits in the box of radius eps
    around each image: y_k - y_label at its largest for every class k.
    """
    logits = model(images)
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    loss = cross_entropy(logits.astype(dtype), labels).mean()
    if config.certified_eps:
        worst = -model.margins(images, labels, pace.eps.astype(dtype))
        share = pace.share.astype(dtype)
        loss = (1 - share) * loss + share * cross_entropy(worst, labels).mean()
    if config.lipschitz_weight:
        loss += config.lipschitz_weight * model.regulariser()
    return loss, logits
