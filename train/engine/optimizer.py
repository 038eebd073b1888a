"""The optimiser of a run."""

import optax

from train.config import Config


def build_optimizer(config: Config) -> optax.GradientTransformation:
    """Clipped gradients through momentum, or through Adam.

    The step is minus the rate times what comes out, as in PyTorch's SGD.
    """
    if config.clip_norm:
        clip = optax.clip_by_global_norm(config.clip_norm)
    else:
        clip = optax.identity()
    if config.optimizer == "adam":
        return optax.chain(clip, optax.scale_by_adam())
    return optax.chain(clip, optax.trace(decay=config.momentum))
