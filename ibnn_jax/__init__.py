"""Implicit Bias Neural Networks in JAX and Flax."""

from ibnn_jax.adjoint import Implicit, Phantom, Unrolled
from ibnn_jax.convolution import canonical_convolution
from ibnn_jax.couplings import Dense, Uniform, Window, uniqueness_bound
from ibnn_jax.layers import IBNNConv, IBNNLinear, ImplicitBias, implicit_layers, project
from ibnn_jax.models import UCN, transfer
from ibnn_jax.sigmas import Sigma, hard_tanh, tanh
from ibnn_jax.solution import Result, Solution, Stats
from ibnn_jax.solve import energy, implicit_bias, solve, solve_adjoint
from ibnn_jax.solvers.anderson import Anderson
from ibnn_jax.solvers.broyden import Broyden
from ibnn_jax.solvers.gradient_descent import GradientDescent
from ibnn_jax.solvers.meanfield import MeanField
from ibnn_jax.solvers.newton import Newton
from ibnn_jax.solvers.picard import Picard
