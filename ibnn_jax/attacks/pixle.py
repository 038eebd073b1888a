"""Pixle: a black-box attack that rearranges a few pixels and asks only for outputs.

The program of its authors (Pomponi, Scardapane and Uncini, 2022) differs in details:
patches are cut at the lower and right border; random places leave out the last row and
column; as long as no candidate was worse than the clean image it goes on with the last
one; misclassified images change.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from ibnn_jax.attacks import checks
from ibnn_jax.attacks.attacked import Attacked, judge, untouched, worse
from ibnn_jax.attacks.network import Network, classes, trace_scores
from ibnn_jax.core.batching import select
from ibnn_jax.core.labels import class_labels, integer_labels
from ibnn_jax.core.options import check_count

MAPPINGS = ("similarity", "similarity_transposed", "random")


class Rearranged(NamedTuple):
    """`Attacked`, and what it cost.

    images, loss, fooled: as in `Attacked`.
    queries: versions of the image that were judged until the network was fooled, the
        clean one included.
    """

    images: Float[Array, "N H W C"]
    loss: Float[Array, "N"]
    fooled: Bool[Array, "N"]
    queries: Int[Array, "N"]


def pixle(
    logits: Callable[[Array], Array],
    images: Float[Array, "N H W C"],
    labels: Int[Array, "N"],
    key: Array,
    *,
    restarts: int = 10,
    iterations: int = 5,
    patch: tuple[int, int] = (3, 3),
    mapping: str = "similarity",
) -> Rearranged:
    """Minimise the probability of the label by copying pixels to other places.

    A candidate copies every pixel s of one random patch of the clean image x0, all
    channels together, to a place d(s) of the image x at hand:

        "similarity":  d(s) = argmax_d 1 / (1 + mean_c |x[d, c] - x0[s, c]|),
            over the places d != s with x[d] != x0[s];
        "similarity_transposed":  to (column, row) of that place instead of
            (row, column), in square images only;
        "random":  d(s) uniform over all places, independently.

    The authors' program and torchattacks 3.5.1 do the second under the name of the
    first: it is the one to compare with their results.

    The patch lies within the image, uniformly; it is another one for every image and
    candidate. Ties of the argmax go to the first place, row by row. Of several pixels
    copied to one place the last stays. Each restart tries `iterations` candidates, all
    made from the image at its beginning. It goes on with the worst one, if that is
    worse for the network than everything before: it fools the network, or has a higher
    cross-entropy -log p(label). At most restarts * patch pixels change, each to a value
    of the clean image. An image that fools the network is left as it is from then on; a
    misclassified clean image from the beginning. Candidates with a non-finite loss are
    never chosen.

    The network is evaluated 1 + restarts * iterations times, on the whole batch. Memory
    is that of the network plus [N, patch pixels, H W] distances. A call compiles once
    for a network and shapes: the weights may change between calls. The function logits
    is traced at each call.

    Args:
        logits: images -> logits [N, classes]; it is not differentiated. A Flax module
            must be in evaluation mode.
        images: [N, H, W, C], floating, any number of channels.
        labels: integers in 0..classes-1. Where their values are not known, an image of
            another label stays clean, with a loss of NaN and fooled False.
        key: the attack is a deterministic function of it, and the first restarts are
            the same whatever their number.
        restarts, iterations, mapping: as above. The defaults are the paper's.
        patch: (height, width).

    Returns:
        `Rearranged`: images, loss, fooled and queries. Images keep their dtype. No
        images give an empty result.

    Raises:
        ValueError: an argument is not as described above, as far as its value is known;
            the patch is larger than the images; images to be transposed are not square.

    Reference: Pomponi, Scardapane and Uncini, Pixle: a fast and effective black-box
    attack based on rearranging pixels (2022).
    """
    images = checks.floating_array("images", images)
    if images.ndim != 4:
        raise ValueError(f"images must be [N, H, W, C]; got {images.shape}")
    labels = integer_labels(labels, len(images))
    key = checks.random_key(key)
    restarts = check_count("restarts", restarts)
    iterations = check_count("iterations", iterations)
    patch = _check_patch(patch, images)
    mapping = checks.one_of("mapping", mapping, MAPPINGS)
    if mapping == "similarity_transposed" and images.shape[1] != images.shape[2]:
        raise ValueError(
            f"images must be square to be transposed; got {images.shape}: use "
            'mapping="similarity"'
        )
    if len(images) == 0:
        return Rearranged(*untouched(images), jnp.zeros(0, jnp.int32))
    scores, images = trace_scores("logits", logits, images)
    return _attack(
        scores,
        images,
        class_labels(labels, classes(scores)),
        key,
        restarts=restarts,
        iterations=iterations,
        patch=patch,
        mapping=mapping,
    )


def _check_patch(patch: Any, images: Array) -> tuple[int, int]:
    if not isinstance(patch, tuple | list) or len(patch) != 2:
        raise ValueError(f"patch must be (height, width); got {patch!r}")
    height, width = (check_count("a side of the patch", side) for side in patch)
    if height > images.shape[1] or width > images.shape[2]:
        raise ValueError(
            f"the patch must not be larger than the images; got {(height, width)} for "
            f"images {images.shape}"
        )
    return height, width


@partial(jax.jit, static_argnames=("restarts", "iterations", "patch", "mapping"))
def _attack(
    scores: Network,
    images: Float[Array, "N H W C"],
    labels: Int[Array, "N"],
    key: Array,
    *,
    restarts: int,
    iterations: int,
    patch: tuple[int, int],
    mapping: str,
) -> Rearranged:
    def restart(state, number):
        start, keys = state[0].images, jax.random.fold_in(key, number)

        def attempt(state, number):
            best, queries = state
            key = jax.random.fold_in(keys, number)
            tried = judge(
                scores, _candidate(start, images, key, patch, mapping), labels
            )
            better = worse(tried, best) & ~best.fooled
            asked = (~best.fooled).astype(queries.dtype)
            return (select(better, tried, best), queries + asked), None

        return jax.lax.scan(attempt, state, jnp.arange(iterations))[0], None

    clean: Attacked = judge(scores, images, labels)
    queries = 1 + 0 * clean.fooled.astype(jnp.int32)  # laid out as the images are
    state = clean, queries
    (best, queries), _ = jax.lax.scan(restart, state, jnp.arange(restarts))
    return Rearranged(*best, queries)


def _candidate(x, clean, key, patch, mapping):
    """x with the pixels of one random patch of the clean images copied into it."""
    n, height, width, channels = clean.shape
    places = height * width  # a place is one index into [H W], row by row
    top, left, anywhere = jax.random.split(key, 3)
    top = jax.random.randint(top, (n, 1), 0, height - patch[0] + 1)
    left = jax.random.randint(left, (n, 1), 0, width - patch[1] + 1)
    rows, columns = jnp.indices(patch).reshape(2, 1, -1)
    zeros = 0 * clean[:, 0, 0, :1].astype(top.dtype)  # laid out as the images are
    source = (top + rows) * width + left + columns + zeros
    pixels = x.reshape(n, places, channels)
    copied = clean.reshape(n, places, channels)
    copied = jnp.take_along_axis(copied, source[..., None], 1)
    if mapping == "random":
        destination = jax.random.randint(anywhere, source.shape, 0, places) + zeros
    else:
        destination = _most_similar(pixels, copied, source)
    if mapping == "similarity_transposed":
        destination = destination % width * width + destination // width
    return _put(pixels, copied, destination).reshape(clean.shape)


def _most_similar(pixels, copied, source):
    """The place of the pixel next to each copied one in value; not its own place."""
    distance = jnp.abs(pixels[:, None] - copied[:, :, None]).mean(-1)
    itself = jnp.arange(pixels.shape[1])[None, None] == source[..., None]
    return jnp.where((distance == 0) | itself, jnp.inf, distance).argmin(-1)


def _put(pixels, copied, destination):
    """The pixels with those copied put at their destinations, the last one on top."""
    arrives = destination[..., None] == jnp.arange(pixels.shape[1])[None, None]
    numbers = jnp.arange(copied.shape[1])[None, :, None]
    last = jnp.where(arrives, numbers, -1).max(1)
    values = jnp.take_along_axis(copied, jnp.maximum(last, 0)[..., None], 1)
    return jnp.where(last[..., None] >= 0, values, pixels)
