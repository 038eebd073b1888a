"""Implicit neurons in JAX and Flax.

The layers: `ImplicitBias`, `IBNNLinear`, `IBNNConv`, `UCN`; `project` after updates.
The function: `implicit_bias` (differentiable), `solve`, `inverse`, `energy`.
Couplings: `Uniform`, `Window`, `Dense`; `uniqueness_bound`, `project_lam`.
Solvers: `MeanField`, `Newton`, `Anderson`, `Broyden`, `GradientDescent`, `Picard`.
Networks on disk: `save`, `load`, `saveable`, `from_torch_state_dict`.
Adjoints: `Implicit`, `Unrolled`, `Phantom`.
The second family, z = phi(A z + B x + b): `NEMON`, `NEMONConv`, and `nemon`;
its rivals `NormBounded`, `MON`; `EquilibriumClassifier`, `ConvolutionalFront`.
Subpackages: `attacks`, `robustness`, `solvers`, `core` (an equation of your own).
"""

from ibnn_jax import attacks, core, nemon, robustness, solvers
from ibnn_jax.core.adjoint import Implicit, Phantom, Unrolled
from ibnn_jax.core.solution import Result, Solution, Stats
from ibnn_jax.ibnn.couplings import Dense, Uniform, Window
from ibnn_jax.ibnn.uniqueness import project_lam, uniqueness_bound
from ibnn_jax.ibnn.mean_field.solver import MeanField
from ibnn_jax.ibnn.sigmas import Sigma, hard_tanh, tanh
from ibnn_jax.ibnn.evaluate import energy, inverse, one_step
from ibnn_jax.ibnn.solve import (
    default_solver,
    implicit_bias,
    solve,
    solve_adjoint,
)
from ibnn_jax.nn.classifier import EquilibriumClassifier
from ibnn_jax.nn.convolution import canonical_convolution, fast_convolution
from ibnn_jax.nn.front import ConvolutionalFront
from ibnn_jax.nn.implicit_bias import ImplicitBias, implicit_layers, project
from ibnn_jax.nn.layers import IBNNConv, IBNNLinear
from ibnn_jax.nn.nemon import NEMON, NEMONConv
from ibnn_jax.nn.rivals import MON, NormBounded
from ibnn_jax.nn.recipe import saveable
from ibnn_jax.nn.saving import load, save
from ibnn_jax.nn.torch_weights import from_torch_state_dict
from ibnn_jax.nn.ucn import UCN, transfer
from ibnn_jax.solvers.anderson import Anderson
from ibnn_jax.solvers.broyden import Broyden
from ibnn_jax.solvers.gradient_descent import GradientDescent
from ibnn_jax.solvers.newton import Newton
from ibnn_jax.solvers.picard import Picard

__version__ = "0.2.0"

__all__ = [
    "Anderson",
    "Broyden",
    "ConvolutionalFront",
    "Dense",
    "EquilibriumClassifier",
    "GradientDescent",
    "IBNNConv",
    "IBNNLinear",
    "Implicit",
    "ImplicitBias",
    "MON",
    "MeanField",
    "NEMON",
    "NEMONConv",
    "Newton",
    "NormBounded",
    "Phantom",
    "Picard",
    "Result",
    "Sigma",
    "Solution",
    "Stats",
    "UCN",
    "Uniform",
    "Unrolled",
    "Window",
    "attacks",
    "canonical_convolution",
    "core",
    "default_solver",
    "energy",
    "fast_convolution",
    "from_torch_state_dict",
    "hard_tanh",
    "implicit_bias",
    "implicit_layers",
    "inverse",
    "load",
    "nemon",
    "one_step",
    "project",
    "project_lam",
    "robustness",
    "save",
    "saveable",
    "solve",
    "solve_adjoint",
    "solvers",
    "tanh",
    "transfer",
    "uniqueness_bound",
]
