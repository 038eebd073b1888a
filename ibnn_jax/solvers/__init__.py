"""The solvers, one algorithm a file; each is a frozen options object for `solver=`.

All but MeanField run on any `ibnn_jax.core.AbstractProblem`.
"""

from typing import TYPE_CHECKING

from ibnn_jax.solvers.anderson import Anderson
from ibnn_jax.solvers.broyden import Broyden
from ibnn_jax.solvers.gradient_descent import GradientDescent
from ibnn_jax.solvers.jaxopt import from_jaxopt
from ibnn_jax.solvers.newton import Newton
from ibnn_jax.solvers.picard import Picard

if TYPE_CHECKING:
    from ibnn_jax.ibnn.mean_field.solver import MeanField

__all__ = [
    "Anderson",
    "Broyden",
    "GradientDescent",
    "MeanField",
    "Newton",
    "Picard",
    "from_jaxopt",
]


def __getattr__(name: str):
    # MeanField solves implicit bias only, so it lives there and uses Newton from here.
    if name == "MeanField":
        from ibnn_jax.ibnn.mean_field.solver import MeanField

        return MeanField
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
