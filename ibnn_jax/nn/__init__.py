"""Flax NNX modules.

implicit_bias.py  the implicit bias between an affine map and its activation
layers.py         IBNNLinear, IBNNConv
nemon.py          NEMON, NEMONConv
rivals.py         NormBounded and MON, which these are compared with
front.py          ConvolutionalFront, explicit convolutions before one of these
classifier.py     EquilibriumClassifier: one of these, a readout, and its certificates
ucn.py            UCN(L, C), its standard twin, the transfer of weights
saving.py         networks on disk; recipe.py: how they are built, as JSON
torch_weights.py  a UCN from the weights of the authors' program
convolution.py    a convolution that stays fast on CPUs in loops and under vmap
"""

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

__all__ = [
    "ConvolutionalFront",
    "EquilibriumClassifier",
    "IBNNConv",
    "IBNNLinear",
    "ImplicitBias",
    "MON",
    "NEMON",
    "NEMONConv",
    "NormBounded",
    "UCN",
    "canonical_convolution",
    "fast_convolution",
    "from_torch_state_dict",
    "implicit_layers",
    "load",
    "project",
    "save",
    "saveable",
    "transfer",
]
