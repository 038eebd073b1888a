"""NEMON: implicit neurons z = phi(A z + u) that are well-posed in the infinity norm.

weights.py      matrices with mu(A) <= gamma by construction, and those of the rivals
conditions.py   which conditions for uniqueness a matrix meets
matrices.py     A dense, or a convolution
equation.py     the problem that the solvers see
solve.py        solve, fixed_point, solve_adjoint
splitting.py    the solvers of monotone operator networks
lipschitz.py    how far the output can move; the regulariser
interval.py     bounds on z by the embedded network

Reference: Jafarpour, Davydov, Proskurnikov and Bullo, Robust implicit networks via
    non-Euclidean contractions (2021).
"""

from ibnn_jax.nemon.conditions import (
    is_contractive,
    is_monotone,
    is_norm_bounded,
    is_subhomogeneous,
    subhomogeneous_degree,
)
from ibnn_jax.nemon.equation import NEMONProblem, average_step
from ibnn_jax.nemon.interval import certified, interval, margins
from ibnn_jax.nemon.lipschitz import lipschitz, regulariser
from ibnn_jax.nemon.matrices import Convolution
from ibnn_jax.nemon.solve import fixed_point, most_steps, solve, solve_adjoint
from ibnn_jax.nemon.splitting import ForwardBackward, PeacemanRachford
from ibnn_jax.nemon.weights import (
    best_weights,
    contractive,
    contractive_kernel,
    matrix_measure,
    monotone,
    norm_bounded,
)

__all__ = [
    "Convolution",
    "ForwardBackward",
    "NEMONProblem",
    "PeacemanRachford",
    "average_step",
    "best_weights",
    "certified",
    "contractive",
    "contractive_kernel",
    "fixed_point",
    "interval",
    "is_contractive",
    "is_monotone",
    "is_norm_bounded",
    "is_subhomogeneous",
    "lipschitz",
    "margins",
    "matrix_measure",
    "most_steps",
    "monotone",
    "norm_bounded",
    "regulariser",
    "solve",
    "solve_adjoint",
    "subhomogeneous_degree",
]
