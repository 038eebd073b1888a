"""What MeanField tries for groups of one size, in this order: points, grids, pairs."""

from typing import NamedTuple

from ibnn_jax.ibnn.mean_field.grid import Grid
from ibnn_jax.ibnn.mean_field.patches import Patches


class Plan(NamedTuple):
    """The attempts, each for the groups that those before it have not solved."""

    cells: tuple[int, ...]  # of every attempt on points
    # Of the one attempt on grids; empty where there is none
    grids: tuple[Grid | Patches, ...]
    pairs: bool  # whether the rest is solved pairwise
