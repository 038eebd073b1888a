"""What is solved: random inputs, trained activations, and the equation to judge by."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import ibnn_jax

LAMS = (-0.1, -0.5, -2.0, -5.0, -20.0, 0.03, 0.08)
ACTIVATIONS = Path(__file__).parent / "activations.npz"


def activations(lam: float) -> np.ndarray:
    """y [16, 28, 28, 3] of a UCN(1, 3) trained on Fashion-MNIST at a lam near this one.

    The networks were trained at -0.5, at -2, and up to the bound, 0.095.
    """
    with np.load(ACTIVATIONS) as file:
        nearest = min((-0.5, -2.0, 0.095), key=lambda trained: abs(trained - lam))
        return file[f"lam{nearest:g}"].astype(np.float32)


def kinds(lam: float, groups: int, side: int) -> dict[str, np.ndarray]:
    """name -> y [groups, side, side]: random, wide, with ties, and real activations.

    With side = 14 the real ones are every other pixel.
    """
    rng = np.random.default_rng(0)
    shape = (groups, side, side)
    normal = rng.normal(size=shape)
    maps = np.moveaxis(activations(lam), -1, 1).reshape(-1, 28, 28)
    stride = 28 // side
    found = {
        "random": normal,
        "wide": 4 * normal,
        "ties": np.where(rng.random(shape) < 0.6, 0.2, normal),
        "trained": maps[:groups, ::stride, ::stride][:, :side, :side],
    }
    return {kind: y.astype(np.float32) for kind, y in found.items()}


def couplings(side: int) -> dict:
    """name -> (coupling, shape of one group), each on side * side neurons."""
    n = side * side
    w = np.random.default_rng(1).random((n, n))
    w = (w + w.T) / (w + w.T).sum(1).max()
    return {
        "Uniform": (ibnn_jax.Uniform((-2, -1)), (side, side)),
        "Window": (ibnn_jax.Window((5, 5), axes=(-2, -1)), (side, side)),
        "Dense": (ibnn_jax.Dense(w), (n,)),
    }


def true_residual(z, y, lam, p, coupling) -> np.ndarray:
    """max|y - lam B(z) - z| per group, all pairs of neurons, in float64."""
    with jax.enable_x64(True):
        z, y = (jnp.asarray(np.asarray(x), jnp.float64) for x in (z, y))
        return np.asarray(_residuals(coupling)(z, y, jnp.float64(lam), p))


@functools.cache
def _residuals(coupling):
    """Jitted, once for a coupling; one group at a time."""

    def residual(z, y, lam, p):
        return jnp.abs(y - ibnn_jax.inverse(z, lam, p, coupling)).max()

    return jax.jit(
        lambda z, y, lam, p: jax.lax.map(lambda pair: residual(*pair, lam, p), (z, y))
    )


def in_float64(f, *args) -> list[np.ndarray]:
    """The arrays that f returns for these arrays, computed in float64."""
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x), jnp.float64) for x in args]
        return [np.asarray(array) for array in f(*wide)]
