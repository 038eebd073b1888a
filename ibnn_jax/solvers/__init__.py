"""The solvers, one algorithm a file; each is a frozen options object for `solver=`."""

from ibnn_jax.solvers.anderson import Anderson
from ibnn_jax.solvers.broyden import Broyden
from ibnn_jax.solvers.gradient_descent import GradientDescent
from ibnn_jax.solvers.jaxopt import from_jaxopt
from ibnn_jax.solvers.newton import Newton
from ibnn_jax.solvers.picard import Picard

__all__ = ["Anderson", "Broyden", "GradientDescent", "Newton", "Picard", "from_jaxopt"]
