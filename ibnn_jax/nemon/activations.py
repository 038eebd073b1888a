"""What the theory asks of phi: elementwise, nondecreasing, of slope at most 1."""

from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float


def slope(
    activation: Callable[[Array], Array], x: Float[Array, "..."]
) -> Float[Array, "..."]:
    """phi'(x), elementwise."""
    return jax.jvp(activation, (x,), (jnp.ones_like(x),))[1]


def check_activation(activation: Callable[[Array], Array]) -> None:
    """Refuse a phi that is seen to decrease or to have a slope above 1.

    It is sampled between -20 and 20: what passes is not proved to be admissible.

    Raises:
        ValueError: no hashable function of jax, not elementwise, decreasing, or of
            slope above 1.
    """
    try:
        _check_samples(activation)
    except (TypeError, jax.errors.TracerArrayConversionError):
        raise ValueError(
            "activation must be a hashable function of one jax array, e.g. "
            f"jax.nn.relu or jnp.tanh; got {activation!r:.80}"
        ) from None


@lru_cache(maxsize=64)
def _check_samples(activation: Callable[[Array], Array]) -> None:
    x = np.linspace(-20, 20, 4001, dtype=np.float32)

    def sample(x):
        return activation(x), activation(x[:100])

    # Compiled, so that no transformation of the caller, such as vmap, takes part.
    values, few = jax.jit(sample).lower(x).compile()(x)
    values, few = np.asarray(values, np.float64), np.asarray(few, np.float64)
    if values.shape != x.shape or not np.allclose(values[:100], few, atol=1e-5):
        raise ValueError(f"activation must be elementwise; {_name(activation)} is not")
    slopes = np.diff(values) / np.diff(np.asarray(x, np.float64))
    # Differences of float32 values near 20 are off by up to 2e-4 of a step of 0.01.
    if slopes.min() < -1e-3:
        raise ValueError(
            f"activation must be nondecreasing; {_name(activation)} is not "
            f"(slope {slopes.min():.2g}). Use relu, leaky_relu, elu, tanh or softplus"
        )
    if slopes.max() > 1 + 1e-3:
        raise ValueError(
            f"activation must have slope at most 1; {_name(activation)} has "
            f"{slopes.max():.3g}. Use relu, leaky_relu, elu, tanh or softplus"
        )


def _name(activation) -> str:
    return getattr(activation, "__name__", repr(activation))
