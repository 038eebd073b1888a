"""What a solve returns: the value, a result code and statistics, all per group."""

from enum import IntEnum
from typing import NamedTuple

from jax import Array
from jaxtyping import Bool, Float, Int


class Result(IntEnum):
    """The outcome for one group; codes 0 and 1 mean converged."""

    CONVERGED = 0  # and the equation is known to have no other solution
    CONVERGED_NOT_UNIQUE = 1  # the solution reached by descent; others may exist
    MAX_STEPS = 2  # the tolerance was not met
    NONFINITE = 3  # an input or an iterate was NaN or infinite; the value is NaN


class Stats(NamedTuple):
    """Statistics of a solve; each array has one entry per group.

    For implicit bias a group is one index of the uncoupled axes of y, so each array
    has the shape of y without its coupled axes.

    steps: solver steps taken (int32).
    residual: max_i |r_i| at the value; MeanField says how it estimates it.
    converged: whether the residual is within the tolerance.
    trace: residual after each step, [*groups, max_steps + 1], the last value
        repeated; None unless asked for.
    """

    steps: Int[Array, "*groups"]
    residual: Float[Array, "*groups"]
    converged: Bool[Array, "*groups"]
    trace: Float[Array, "*groups steps"] | None = None


class Solution(NamedTuple):
    """What a solve returns.

    value: the answer; NaN in groups whose result is `Result.NONFINITE`.
    result: `Result` codes (int32), one per group.
    stats: `Stats`, per group.
    """

    value: Array
    result: Int[Array, "*groups"]
    stats: Stats
