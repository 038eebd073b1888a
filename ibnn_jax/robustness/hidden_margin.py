"""How far the hidden activations of a network are from another class."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from ibnn_jax.attacks.network import check_evaluation_mode
from ibnn_jax.core.labels import class_labels, integer_labels
from ibnn_jax.nn.ucn import UCN


def hidden_margins(
    model: UCN, images: Float[Array, "N H W C"], labels: Int[Array, "N"]
) -> Float[Array, "N"]:
    """How far the hidden activations of each image are from the nearest wrong class.

    With one hidden layer v the logits are linear in v, f_j = c_j . v + const, where c_j
    takes up the scale of batch norm. Moving v by less than

        min over j of (f_label - f_j) / |c_label - c_j|_2

    leaves the class as it is. This is half of the paper's margin M (Eq. S3), of one
    image: compare it with how far a layer can move v (Eqs. S9, S11; `transfer_margin`
    of twice the distance).

    Args:
        model: a network of one block, in evaluation mode.
        images, labels: what it is asked, and the right classes.

    Returns:
        One distance per image; negative where the class is wrong already, NaN where a
        traced label is no class.

    Raises:
        ValueError: the network has more than one block, or is in training mode; labels
            are not [N] integers, or are known not to be classes.
    """
    labels = integer_labels(labels, len(images))
    if len(model.blocks) != 1:
        raise ValueError(
            "hidden_margins needs a network of one hidden layer; this one has "
            f"{len(model.blocks)}"
        )
    check_evaluation_mode(model, images)
    norm = model.blocks[0].norm
    assert norm.scale is not None  # UCN's batch norm has one
    scale = norm.scale[...] / jnp.sqrt(norm.var[...] + norm.epsilon)
    kernel = model.head.kernel[...]
    c = kernel.reshape(-1, len(scale), kernel.shape[1]) * scale[:, None]
    c = c.reshape(kernel.shape)  # [activations, classes]
    gaps = jnp.linalg.norm(c[:, :, None] - c[:, None, :], axis=0)
    logits = model(images)
    labels = class_labels(labels, len(gaps))
    own = jnp.take_along_axis(logits, labels[:, None], 1)
    distance = (own - logits) / jnp.where(gaps > 0, gaps, 1)[labels]
    is_own = jnp.arange(len(gaps)) == labels[:, None]
    nearest = jnp.where(is_own, jnp.inf, distance).min(1)
    return jnp.where(labels >= 0, nearest, jnp.nan)
