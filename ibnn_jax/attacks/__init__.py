"""Adversarial attacks as pure functions on any logits function: they jit, and vmap over networks."""

from ibnn_jax.attacks.attacked import Attacked
from ibnn_jax.attacks.pgd import pgd
from ibnn_jax.attacks.pixle import Rearranged, pixle

__all__ = ["Attacked", "Rearranged", "pgd", "pixle"]
