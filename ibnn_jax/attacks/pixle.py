"""Pixle: a black-box attack that rearranges a few pixels, and asks the network nothing but its outputs."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from ibnn_jax.attacks.attacked import judge, worse
from ibnn_jax.core.batching import select


class Rearranged(NamedTuple):
    """Attacked, and what it cost."""

    images: Float[Array, "N H W C"]
    loss: Float[
        Array, "N"
    ]  # cross-entropy there; not finite only where no version of the image has a finite one
    fooled: Bool[
        Array, "N"
    ]  # the prediction there is not the label (clean images already misclassified included)
    queries: Int[
        Array, "N"
    ]  # versions of the image that were judged until the network was fooled, the clean one included


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
    """Minimise the probability of the label by copying pixels, all channels together, to other places.

    A candidate copies every pixel s of one random patch of the clean images x0 to a place d(s) of the image x at hand:
        "similarity":  d(s) = argmax_d 1 / (1 + mean_c |x[d, c] - x0[s, c]|), over the places d != s with x[d] != x0[s];
        "similarity_transposed": to (column, row) of that place instead of (row, column), in square images only. The authors'
            program and torchattacks 3.5.1 do this under the name "similarity": it is the one to compare with their results.
        "random":      d(s) uniform over all places, independently.
    The patch lies within the image, uniformly; it is another one for every image and candidate. Ties of the argmax go to the
    first place, row by row; of several pixels copied to one place the last stays. Each restart tries `iterations` candidates,
    all made from the image at its beginning, and goes on with the worst one, if it is worse for the network than everything
    before: it fools the network, or the cross-entropy -log p(label) is higher. At most restarts * patch pixels change, each to a
    value of the clean image. An image that fools the network is left as it is from then on, a misclassified clean image from
    the beginning. Candidates with a non-finite loss are never chosen.

    The network is evaluated 1 + restarts * iterations times, on the whole batch; memory is that of the network plus
    [N, patch pixels, H W] distances.

    Args:
        logits: images -> logits [N, classes]; it is not differentiated.
        images: [N, H, W, C], floating point, any number of channels. The result has the same type.
        labels: integers [N].
        key: the attack is a deterministic function of it, and the first restarts are the same whatever their number.
        restarts, iterations, patch, mapping: as above; patch is (height, width). The paper's attack has the default values.

    Raises:
        ValueError: images that are not [N, H, W, C], labels that are not one integer per image, restarts, iterations or a side of
            the patch less than 1, a patch larger than the images, another mapping, images to be transposed that are not square.

    Reference: Pomponi, Scardapane and Uncini, Pixle: a fast and effective black-box attack based on rearranging pixels (2022).
    The authors' program differs in details: patches are cut at the lower and right border; random places leave out the last row
    and column; as long as no candidate was worse than the clean image it goes on with the last one; misclassified images change.
    """
    if images.ndim != 4:
        raise ValueError(f"images must be [N, H, W, C]; got {images.shape}")
    if labels.shape != images.shape[:1] or not jnp.issubdtype(
        labels.dtype, jnp.integer
    ):
        raise ValueError(
            f"labels must be one integer per image; got {labels.dtype}{labels.shape} for images {images.shape}"
        )
    if min(restarts, iterations, *patch) < 1:
        raise ValueError(
            f"restarts, iterations and the sides of the patch must be at least 1; got {restarts}, {iterations} and {patch}"
        )
    n, height, width, channels = images.shape
    if patch[0] > height or patch[1] > width:
        raise ValueError(
            f"the patch must not be larger than the images; got {patch} for images {images.shape}"
        )
    if mapping not in ("similarity", "similarity_transposed", "random"):
        raise ValueError(
            f'mapping must be "similarity", "similarity_transposed" or "random"; got {mapping!r}'
        )
    if mapping == "similarity_transposed" and height != width:
        raise ValueError(
            f"only places of square images can be transposed; got {images.shape}"
        )
    # A place is one index into [H W]; these are the patch's, row by row, from its upper left corner.
    offsets = (jnp.arange(patch[0])[:, None] * width + jnp.arange(patch[1])).ravel()
    places = jnp.arange(height * width)
    pixels = images.reshape(n, height * width, channels)

    def candidate(x, key):
        top, left, anywhere = jax.random.split(key, 3)
        top = jax.random.randint(top, n, 0, height - patch[0] + 1)
        left = jax.random.randint(left, n, 0, width - patch[1] + 1)
        source = (top * width + left)[:, None] + offsets
        values = jnp.take_along_axis(pixels, source[..., None], 1)
        x = x.reshape(pixels.shape)
        if mapping == "random":
            destination = jax.random.randint(anywhere, source.shape, 0, height * width)
        else:
            distance = jnp.abs(x[:, None] - values[:, :, None]).mean(-1)
            useless = (distance == 0) | (places == source[..., None])
            destination = jnp.where(useless, jnp.inf, distance).argmin(-1)
            if mapping == "similarity_transposed":
                destination = destination % width * width + destination // width
        # A scatter with repeated indices keeps any of the values: the maximum of their numbers says which one it must be.
        last = (
            jnp.full((n, height * width), -1)
            .at[jnp.arange(n)[:, None], destination]
            .max(jnp.arange(len(offsets)))
        )
        copied = jnp.take_along_axis(values, jnp.maximum(last, 0)[..., None], 1)
        return jnp.where(last[..., None] >= 0, copied, x).reshape(images.shape)

    def restart(state, number):
        start, keys = state[0].images, jax.random.fold_in(key, number)

        def attempt(state, number):
            best, queries = state
            tried = judge(
                logits, candidate(start, jax.random.fold_in(keys, number)), labels
            )
            return (
                select(worse(tried, best) & ~best.fooled, tried, best),
                queries + ~best.fooled,
            ), None

        return jax.lax.scan(attempt, state, jnp.arange(iterations))[0], None

    state = judge(logits, images, labels), jnp.ones(n, jnp.int32)
    (best, queries), _ = jax.lax.scan(restart, state, jnp.arange(restarts))
    return Rearranged(*best, queries)
