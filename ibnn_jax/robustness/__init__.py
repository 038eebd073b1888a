"""The paper's theory of robustness as functions: gains, curvature and margins."""

from ibnn_jax.robustness.curvature import (
    curvature_ratio,
    input_curvature,
    predicted_curvature_ratio,
)
from ibnn_jax.robustness.hidden_margin import hidden_margins
from ibnn_jax.robustness.jacobian import input_jacobian_norm
from ibnn_jax.robustness.margin import paper_transfer_margin, transfer_margin
from ibnn_jax.robustness.spectrum import gain, gain_spectrum

__all__ = [
    "curvature_ratio",
    "gain",
    "gain_spectrum",
    "hidden_margins",
    "input_curvature",
    "input_jacobian_norm",
    "paper_transfer_margin",
    "predicted_curvature_ratio",
    "transfer_margin",
]
