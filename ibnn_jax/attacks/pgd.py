"""Projected gradient descent: the worst small change that a few gradient steps find."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from ibnn_jax.attacks import checks
from ibnn_jax.attacks.attacked import (
    Attacked,
    cross_entropy,
    judge,
    untouched,
    worse,
)
from ibnn_jax.attacks.ball import L2, Ball, Linf
from ibnn_jax.attacks.network import Network, classes, trace, trace_scores
from ibnn_jax.core.batching import select
from ibnn_jax.core.labels import class_labels, integer_labels
from ibnn_jax.core.options import check_count

NORMS: dict[str, type[Ball]] = {"linf": Linf, "l2": L2}


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

        x <- project(x + step_size * direction(grad loss(x)))

    The direction is the sign of the gradient for L-inf and the unit gradient for L2.
    The projection is onto the ball of radius eps around the image and onto the bounds.
    Of the clean image and the ends of all restarts, each image keeps one that fools
    the network, and among these the one of the highest loss.

    A call compiles once for a network and shapes: the weights may change between calls.
    The function logits is traced at each call.

    Args:
        logits: the network whose gradient is followed: images -> logits [N, classes],
            differentiable, each row of its own image only. A Flax module must be in
            evaluation mode. Where the margin of an image is beyond some 100 (float16
            images: 15), its loss has no gradient: divide such logits by a constant.
        images: floating, within bounds. Under a transformation, where their values are
            not known, an image outside of them stays in its eps ball, and of the ball
            uses what is within bounds.
        labels: integers in 0..classes-1. Where their values are not known, an image of
            another label stays clean, with a loss of NaN and fooled False.
        key: of the random starts; the attack is a deterministic function of it.
        eps: radius, in units of pixel values. A traced one may be vmapped; where it is
            negative or NaN the images stay clean.
        steps: gradient steps per restart.
        step_size: None takes 2.5 eps / steps (Madry et al.).
        norm: "linf" or "l2".
        restarts: independent random starts.
        random_start: False starts at the images themselves, every time: more than one
            restart is then of no use.
        target: the network to be fooled, if it is not the one whose gradient is
            followed: the paper's surrogate attack follows the standard model to fool
            an IBNN.
        bounds: smallest and largest pixel value: two numbers, or two arrays that
            broadcast against one image.

    Returns:
        `Attacked`: images, loss and fooled. Images keep their dtype, whatever that of
        eps; they are within eps up to its rounding. No images give an empty result.

    Raises:
        ValueError: an argument is not as described above, as far as its value is known.

    Reference: Madry et al., Towards deep learning models resistant to adversarial
    attacks (2018); paper, Fig. 4.
    """
    images = checks.floating_array("images", images)
    labels = integer_labels(labels, len(images))
    key = checks.random_key(key)
    steps = check_count("steps", steps)
    restarts = check_count("restarts", restarts)
    ball = _ball(images, eps, norm, bounds)
    if step_size is None:
        step_size = 2.5 * ball.eps / steps
    else:
        step_size = checks.scalar("step_size", step_size, images.dtype, positive=True)
    if len(images) == 0:
        return untouched(images)
    scores, images = _trace_target(logits, target, images)
    ball = replace(ball, centre=images)
    labels = class_labels(labels, classes(scores))
    gradient = _trace_gradient(logits, images, labels)
    return _attack(
        gradient,
        scores,
        ball,
        labels,
        key,
        step_size,
        steps=steps,
        restarts=restarts,
        random_start=bool(random_start),
    )


def _ball(images, eps, norm, bounds) -> Ball:
    """Where the attack may go."""
    eps = checks.scalar("eps", eps, images.dtype, positive=False)
    low, high = checks.within_bounds(images, bounds)
    return NORMS[checks.one_of("norm", norm, tuple(NORMS))](images, eps, low, high)


def _trace_target(logits, target, images) -> tuple[Network, Array]:
    """(images -> logits of the network to be fooled, the images)."""
    followed, images = trace_scores("logits", logits, images)
    if target is None:
        return followed, images
    scores, images = trace_scores("target", target, images)
    if classes(followed) != classes(scores):
        raise ValueError(
            "logits and target must have the same classes; got "
            f"{classes(followed)} and {classes(scores)}"
        )
    return scores, images


def _trace_gradient(logits, images, labels) -> Network:
    """images, labels -> gradient of each image's loss."""

    def loss(images, labels):
        return cross_entropy(logits(images), labels).sum()

    return trace(jax.grad(loss), images, labels)


@partial(jax.jit, static_argnames=("steps", "restarts", "random_start"))
def _attack(
    gradient: Network,
    scores: Network,
    ball: Ball,
    labels: Int[Array, "N"],
    key: Array,
    step_size: Float[Array, ""],
    *,
    steps: int,
    restarts: int,
    random_start: bool,
) -> Attacked:
    def ascend(x, _):
        uphill = gradient(x, labels)
        uphill = jnp.where(jnp.isfinite(uphill), uphill, 0)
        return ball.project(x + step_size * ball.direction(uphill)), None

    def attempt(best, key):
        start = ball.sample(key) if random_start else ball.centre
        x, _ = jax.lax.scan(ascend, start, None, length=steps)
        tried = judge(scores, x, labels)
        return select(worse(tried, best), tried, best), None

    clean = judge(scores, ball.centre, labels)
    return jax.lax.scan(attempt, clean, jax.random.split(key, restarts))[0]
