"""Adversarial attacks as pure functions on any network: they jit, and vmap."""

from ibnn_jax.attacks.attacked import Attacked
from ibnn_jax.attacks.pgd import pgd
from ibnn_jax.attacks.pixle import Rearranged, pixle
from ibnn_jax.attacks.stealth import (
    StealthAttack,
    StealthNeuron,
    informed_stealth_neurons,
    stealth,
    stealth_neurons,
)

__all__ = [
    "Attacked",
    "Rearranged",
    "StealthAttack",
    "StealthNeuron",
    "informed_stealth_neurons",
    "pgd",
    "pixle",
    "stealth",
    "stealth_neurons",
]
