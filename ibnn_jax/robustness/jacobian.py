"""How strongly a network's outputs answer to its inputs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ibnn_jax.attacks import checks
from ibnn_jax.attacks.network import evaluation_mode
from ibnn_jax.core.options import check_count


def input_jacobian_norm(
    logits: Callable[[Array], Float[Array, "N classes"]],
    images: Float[Array, "N ..."],
    *,
    batch_size: int = 20,
) -> Float[Array, "N"]:
    """The Frobenius norm of the Jacobian of the logits, one value per image.

        |d logits / d x|_F

    Args:
        logits: images -> logits, each of its own image only.
        images: the places at which the Jacobian is taken.
        batch_size: images whose Jacobians are held at once.

    Raises:
        ValueError: images are not floating, batch_size is not a whole number of at
            least 1, or the network is in training mode.
    """
    images = checks.floating_array("images", images)
    batch_size = check_count("batch_size", batch_size)

    def one(image):
        scores, pull = jax.vjp(lambda x: logits(x[None])[0], image)
        (rows,) = jax.vmap(pull)(jnp.eye(len(scores), dtype=scores.dtype))
        return jnp.sqrt((rows**2).sum())

    with evaluation_mode():
        return jax.lax.map(one, images, batch_size=batch_size)
