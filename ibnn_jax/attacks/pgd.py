"""Projected gradient descent: the strongest small change of the images that a few gradient steps find."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, Int

from ibnn_jax.attacks.attacked import Attacked, judge, worse
from ibnn_jax.core.batching import select


def pgd(
    logits: Callable[[Array], Array],
    images: Float[Array, "N ..."],
    labels: Int[Array, "N"],
    key: Array,
    *,
    eps: float | Array,
    steps: int = 10,
    step_size: float | Array | None = None,
    norm: str = "linf",
    restarts: int = 1,
    random_start: bool = True,
    target: Callable[[Array], Array] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Attacked:
    """Maximise the cross-entropy within eps of each image, from random starts.

    x <- project(x + step_size * direction(grad loss(x))): the sign of the gradient for L-inf, the unit gradient for L2;
    the projection is onto the ball of radius eps around the image and onto the pixel range. Of the clean image and the
    ends of all restarts, each image keeps one that fools the network, and among these the one of the highest loss.

    Args:
        logits: images -> logits [N, classes], differentiable: the network whose gradient is followed.
        images: within bounds. labels: integers.
        key: of the random starts; the attack is a deterministic function of it.
        eps: radius, in units of pixel values; a traced scalar may be vmapped.
        steps: gradient steps per restart.
        step_size: None takes 2.5 eps / steps (Madry et al.).
        norm: "linf" or "l2".
        restarts: independent random starts.
        random_start: False starts at the images themselves, every time: more than one restart is then of no use.
        target: the network that is to be fooled, if it is not the one whose gradient is followed: the paper's
            surrogate attack follows the standard model to fool an IBNN.
        bounds: smallest and largest pixel value.

    Raises:
        ValueError: another norm, steps or restarts less than 1, negative eps, labels that do not fit the images.

    Reference: Madry et al., Towards deep learning models resistant to adversarial attacks (2018); paper, Fig. 4.
    """
    if norm not in ("linf", "l2"):
        raise ValueError(f'norm must be "linf" or "l2"; got {norm!r}')
    if steps < 1 or restarts < 1:
        raise ValueError(
            f"steps and restarts must be at least 1; got {steps} and {restarts}"
        )
    if not isinstance(eps, jax.core.Tracer) and (np.asarray(eps) < 0).any():
        raise ValueError(f"eps must not be negative; got {eps}")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels must have one entry per image; got {labels.shape} for images {images.shape}"
        )
    target = logits if target is None else target
    step_size = 2.5 * eps / steps if step_size is None else step_size
    axes = tuple(range(1, images.ndim))

    def cross_entropy(scores):
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels)

    def length(d):
        return jnp.sqrt((d**2).sum(axes, keepdims=True))

    def project(x):
        change = x - images
        if norm == "linf":
            change = jnp.clip(change, -eps, eps)
        else:
            change = change * jnp.minimum(1, eps / jnp.maximum(length(change), 1e-12))
        # Cutting to the pixel range shortens the change: the images themselves are within it.
        return jnp.clip(images + change, *bounds)

    def start(key):
        if norm == "linf":
            return project(
                images
                + jax.random.uniform(key, images.shape, images.dtype, -1, 1) * eps
            )
        direction, radius = jax.random.split(key)
        noise = jax.random.normal(direction, images.shape, images.dtype)
        size = images[0].size
        shrink = jax.random.uniform(
            radius, (len(images),) + (1,) * len(axes), images.dtype
        ) ** (1 / size)
        return project(
            images + eps * shrink * noise / jnp.maximum(length(noise), 1e-12)
        )

    def ascend(x, _):
        gradient = jax.grad(lambda x: cross_entropy(logits(x)).sum())(x)
        gradient = jnp.where(jnp.isfinite(gradient), gradient, 0)
        if norm == "linf":
            direction = jnp.sign(gradient)
        else:
            direction = gradient / jnp.maximum(length(gradient), 1e-12)
        return project(x + step_size * direction), None

    def attempt(best, key):
        x, _ = jax.lax.scan(
            ascend, start(key) if random_start else images, None, length=steps
        )
        tried = judge(target, x, labels)
        return select(worse(tried, best), tried, best), None

    best, _ = jax.lax.scan(
        attempt, judge(target, images, labels), jax.random.split(key, restarts)
    )
    return best
