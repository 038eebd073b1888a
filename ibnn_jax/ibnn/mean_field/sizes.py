"""How many cells, nodes and neurons suit a platform: every such choice is made here."""

from dataclasses import dataclass

from ibnn_jax.core.batching import on_cpu, on_gpu
from ibnn_jax.ibnn.mean_field.grid import Grid
from ibnn_jax.ibnn.mean_field.patches import Patches

FEW = 128  # neurons whose pairs are worth no compilation of a grid
MANY = 1024  # neurons whose pairs cost too much for those that no grid serves
MOST = 131_072  # neurons beyond which patches would take more memory than all else


@dataclass(frozen=True)
class Sizes:
    """What suits a platform.

    Args:
        cells: of the attempts that grids follow, for more than `FEW` neurons.
        cells_alone: of the attempts that none follows.
        grids: in the order of their cost.
        together: neurons that are treated together on a grid.
        rounds: the share of the groups treated together that each round on grids may
            leave to the next.
    """

    cells: tuple[int, ...]
    cells_alone: tuple[int, ...]
    grids: tuple[Grid, ...]
    together: int
    rounds: tuple[float, ...]


CPU = Sizes(
    cells=(23,),
    cells_alone=(23, 55, 511),
    # The first two are finer, for narrow groups under a strong lam; the last but one
    # serves normal activations of a deviation of up to 10 at p = 10, the last those
    # with outliers.
    grids=(
        Grid(256, 0.22),
        Grid(448, 0.22),
        Grid(896, 0.3125),
        Grid(1536, 0.3125),
        Grid(2688, 0.3125),
        Grid(7168, 0.3125),
    ),
    together=32_000,  # the cache holds what they need
    rounds=(0.4, 0.0),
)
# A GPU takes a million neurons as fast as a few, and few nodes no faster than many. Up
# to 63 cells fit its kernels; more are XLA's loops, and grids cost less than these.
GPU = Sizes(
    cells=(31, 63),
    cells_alone=(31, 63, 127, 511),
    grids=(Grid(3584, 0.3125),),
    together=1_000_000,
    rounds=(0.0,),
)
OTHER = Sizes(
    cells=(), cells_alone=(63, 511), grids=(), together=1_000_000, rounds=(0.0,)
)


def sizes() -> Sizes:
    """What suits the platform that the program is traced for."""
    if on_cpu():
        return CPU
    return GPU if on_gpu() else OTHER


def grids_for(n: int) -> tuple[Grid | Patches, ...]:
    """The grids that cost less than all pairs of n neurons: a node costs some 20.

    Of many neurons what no grid serves is left to patches.
    """
    if n <= FEW:
        return ()
    grids = tuple(grid for grid in sizes().grids if 20 * grid.nodes <= n * n)
    if not grids or not MANY < n <= MOST:
        return grids
    return (*grids, Patches(n))


def cells_for(n: int, grids: bool) -> tuple[int, ...]:
    """Points that cost little beside n neurons, or beside their pairs."""
    if n <= 64:
        return (7,)
    if n <= FEW:
        return (7, 19)
    return sizes().cells if grids else sizes().cells_alone
