"""How much of its margin a network keeps when its neurons become implicit."""

import math

from jax import Array

from ibnn_jax.core.options import check_count


def transfer_margin(
    margin: float | Array, lam: float | Array, n: int, groups: int = 1
) -> float | Array:
    """The margin that is left after lam is added to a standard layer.

        margin - 2 |lam| sqrt(groups (n^2 - 1) / (3 n))

    The layer moves y by lam B(z). Under Uniform coupling B_i is the mean of n values
    sigma(z_k - z_i) in [-1, 1], odd in (i, k). |B| is then largest where sigma
    saturates: the ranked neurons see B_i = (n + 1 - 2 i) / n, whose squares add up to
    (n^2 - 1) / (3 n). Each of two points moves by at most |lam| times its root. The
    bound is attained, and for large n it is the paper's (`paper_transfer_margin`) with
    |lam| divided by sqrt(3).

    Args:
        margin: the distance of the classes before, in the space of y.
        lam: of the layer.
        n: neurons of a coupled group: of a feature map, height times width.
        groups: coupled groups of one example: the channels of a convolution.

    Returns:
        The distance of the classes after; negative where nothing is promised.

    Raises:
        ValueError: n or groups is not a whole number, at least 1.
    """
    _check(n, groups)
    return margin - 2 * abs(lam) * math.sqrt(groups * (n * n - 1) / (3 * n))


def paper_transfer_margin(
    margin: float | Array, lam: float | Array, n: int, groups: int = 1
) -> float | Array:
    """The paper's margin: margin - 2 |lam| sqrt(groups n) (Eq. S11).

    It takes every B_i to be 1; `transfer_margin` is sharper. The arguments are its.

    Raises:
        ValueError: n or groups is not a whole number, at least 1.
    """
    _check(n, groups)
    return margin - 2 * abs(lam) * math.sqrt(groups * n)


def _check(n, groups):
    check_count("n", n)
    check_count("groups", groups)
