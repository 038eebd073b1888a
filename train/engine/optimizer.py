"""The optimiser of a run."""

import optax


def build_optimizer(config):
    """Clipped gradients through momentum; the step is minus the rate times what comes out, as in PyTorch's SGD."""
    clip = (
        optax.clip_by_global_norm(config.clip_norm)
        if config.clip_norm
        else optax.identity()
    )
    return optax.chain(clip, optax.trace(decay=config.momentum))
