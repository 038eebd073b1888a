"""Implicit Bias Neural Networks in JAX and Flax."""
from ibnn_jax.couplings import Dense, Uniform, Window, uniqueness_bound
from ibnn_jax.layers import IBNNConv, IBNNLinear, ImplicitBias, project
from ibnn_jax.models import UCN, transfer
