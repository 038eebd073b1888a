"""The dendritic nonlinearity sigma and its primitive S (paper Eqs. 4, 5, 13, 14).

Each is written for unit slope; a coupling uses sigma(p t) and S(p t) / p, so p is the
slope at the origin.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array


@dataclass(frozen=True)
class Sigma:
    """An odd, non-decreasing sigma with sigma'(0) = 1 and an even, convex S, S' =
    sigma.

    Args:
        value: elementwise t -> sigma(t).
        primitive: elementwise t -> S(t), with S(0) = 0; only the energy uses it.
        slope: elementwise t -> sigma'(t); found by forward differentiation when None.
        max_slope: a bound on sigma' (1 for the sigmoids here); the uniqueness bound
            rests on it.
        positive_definite: True if sigma' is a positive definite function (its Fourier
            transform is non-negative), which raises the uniqueness bound.
        smooth: False if sigma' jumps; MeanField, which interpolates, then stands aside.
    """

    value: Callable[[Array], Array]
    primitive: Callable[[Array], Array]
    slope: Callable[[Array], Array] | None = None
    max_slope: float = 1.0
    positive_definite: bool = False
    smooth: bool = True

    def derivative(self, t: Array, scale: Array | None = None) -> Array:
        """scale sigma'(t), elementwise; scale = 1 when None."""
        if self.slope is _sech2 and scale is not None:
            # Over pairs of neurons t is n x n, and XLA may fill an array of that size
            # with a literal 1, ahead of every loop:
            # docs/notes/xla.md#a-literal-1-becomes-an-array.
            return scale - scale * jnp.tanh(t) ** 2
        if self.slope is None:
            slope = jax.jvp(self.value, (t,), (jnp.ones_like(t),))[1]
        else:
            slope = self.slope(t)
        return slope if scale is None else scale * slope

    def differentiated(self, order: int) -> Callable[[Array], Array]:
        """sigma differentiated `order` times, elementwise."""
        if order < 2:
            return (self.value, self.derivative)[order]
        lower = self.differentiated(order - 1)
        return lambda t: jax.jvp(lower, (t,), (jnp.ones_like(t),))[1]


def _tanh(t):  # jnp.tanh itself cannot be pickled
    return jnp.tanh(t)


def _log_cosh(t):
    # log(cosh t) without overflow: |t| + log((1 + exp(-2|t|)) / 2).
    a = jnp.abs(t)
    return a + jnp.log1p(jnp.exp(-2 * a)) - jnp.log(2.0).astype(t.dtype)


def _sech2(t):
    return 1 - jnp.tanh(t) ** 2


def _clip(t):
    return jnp.clip(t, -1, 1)


def _huber(t):
    a = jnp.abs(t)
    return jnp.where(a <= 1, 0.5 * t * t, a - 0.5)


def _inside(t):
    return (jnp.abs(t) < 1).astype(t.dtype)


tanh = Sigma(_tanh, _log_cosh, _sech2, positive_definite=True)
"""sigma(t) = tanh(t), S(t) = log cosh t: the paper's choice (Eqs. 13, 14)."""

hard_tanh = Sigma(_clip, _huber, _inside, smooth=False)
"""sigma(t) = min(max(t, -1), 1), S = Huber's function: in the paper's memorisation
analysis."""
