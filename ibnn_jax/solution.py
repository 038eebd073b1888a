"""What a solve returns: the value, a result code and statistics, all per coupled group."""

from enum import IntEnum
from typing import NamedTuple

from jax import Array
from jaxtyping import Bool, Float, Int


class Result(IntEnum):
    """The outcome for one coupled group; codes 0 and 1 mean converged."""

    CONVERGED = 0  # and lam is below the uniqueness bound: this is *the* solution
    CONVERGED_NOT_UNIQUE = 1  # past the bound: the solution reached by descent from z = y; others may exist
    MAX_STEPS = 2  # the tolerance was not met within max_steps
    NONFINITE = (
        3  # y, lam or p, or an iterate, was NaN or infinite; the value is NaN there
    )


class Stats(NamedTuple):
    """Per coupled group: each array has the shape of y without the coupled axes.

    steps: solver steps taken (int32).
    residual: max_i |y_i - lam B_i(z) - z_i|. Exact couplings report it as it is; MeanField says how it estimates it.
    converged: residual within `tolerance` (see `solve`), as bool.
    trace: residual after each step, [*groups, max_steps + 1], the last value repeated; None unless asked for.
    """

    steps: Int[Array, "*groups"]
    residual: Float[Array, "*groups"]
    converged: Bool[Array, "*groups"]
    trace: Float[Array, "*groups steps"] | None = None


class Solution(NamedTuple):
    """value: the answer; result: `Result` codes as int32, per group; stats: `Stats`, per group."""

    value: Array
    result: Int[Array, "*groups"]
    stats: Stats
