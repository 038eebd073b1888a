"""How curved a loss is as a function of the input, measured and predicted."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ibnn_jax.attacks import checks
from ibnn_jax.attacks.network import evaluation_mode
from ibnn_jax.core.options import check_count
from ibnn_jax.ibnn.couplings import check_slope


def input_curvature(
    loss: Callable[[Array], Float[Array, "N"]],
    x: Float[Array, "N ..."],
    key: Array,
    *,
    h: float = 1e-2,
    probes: int = 10,
) -> Float[Array, "N"]:
    """The mean square change of the loss's gradient over a small random step.

        E_g |grad L(x + h g) - grad L(x)|^2,   g a vector of random signs   (Eq. 61)

    Args:
        loss: inputs -> one loss per input, each of its own input only.
        x: inputs.
        key: of the random signs.
        h: the size of the step, in units of x.
        probes: how many vectors g the mean is taken over.

    Returns:
        One value per input; none for no inputs.

    Raises:
        ValueError: an argument is not as described above, h is not positive, probes is
            less than 1, or a network in loss is in training mode.
    """
    x = checks.floating_array("x", x)
    key = checks.random_key(key)
    step = checks.scalar("h", h, x.dtype, positive=True)
    probes = check_count("probes", probes)

    def total(x):
        losses = loss(x)
        if losses.shape != x.shape[:1]:
            raise ValueError(
                f"loss must return one value per input, [{len(x)}]; got shape "
                f"{losses.shape}"
            )
        return losses.sum()

    gradient = jax.grad(total)
    with evaluation_mode():
        here = gradient(x)

    def probe(key):
        g = jax.random.rademacher(key, x.shape, x.dtype)
        change = gradient(x + step * g) - here
        return (change**2).sum(tuple(range(1, x.ndim)))

    return jax.lax.map(probe, jax.random.split(key, probes)).mean(0)


def curvature_ratio(lam: float | Array, p: float | Array) -> Array:
    """The curvature of an IBNN's loss over that of its standard twin, at a flat input.

        (1 - lam p)^-2

    Where all neurons of a Uniform group are equal, the Jacobian dz/dy has the
    eigenvalues 1 (for their mean) and 1 / (1 - lam p) (for everything else). A loss
    behind one such layer is therefore curved (1 - lam p)^-2 times as much. Activations
    outside of sigma's linear range are coupled more weakly, and the ratio is then
    closer to 1. The paper's `predicted_curvature_ratio` agrees with it to first order
    in lam p.

    Returns:
        The ratio; NaN for lam p >= 1, where a flat z is not a stable solution.

    Raises:
        ValueError: p is known and not positive.
    """
    check_slope(p)
    shrink = jnp.asarray(1.0 - lam * p)  # floating: integers have no power -2
    return jnp.where(shrink > 0, shrink**-2, jnp.nan)


def predicted_curvature_ratio(lam: float | Array, p: float | Array) -> float | Array:
    """The paper's prediction of the curvature's ratio: (1 + lam p)^2 (Eq. 62).

    It is meant for small lam and inputs in sigma's linear range: the first order in
    lam p of the exact `curvature_ratio`, (1 - lam p)^-2. From lam = -1 / p on it rises
    again, where the exact ratio keeps falling.

    Raises:
        ValueError: p is known and not positive.
    """
    check_slope(p)
    return (1 + lam * p) ** 2
