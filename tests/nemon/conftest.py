"""Random systems for the tests of NEMON."""

import numpy as np
import pytest

from ibnn_jax import nemon


class Draws:
    """A random generator with the draws that several tests need."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.normal, self.choice = self.rng.normal, self.rng.choice

    def weights(self, n):
        """(T, log_eta), with rows of unequal size."""
        T = self.normal(size=(n, n)) * np.exp(self.normal(size=(n, 1))) / n
        return T, 0.5 * self.normal(size=n)

    def system(self, n, gamma, rows=4):
        """(A, u, eta) with mu(A) <= gamma."""
        T, log_eta = self.weights(n)
        A = np.asarray(nemon.contractive(T, log_eta, gamma))
        return A, self.normal(size=(rows, n)), np.exp(log_eta)

    def worst(self, n, gamma, rows=4):
        """A system on which the average iteration is as slow as theory allows."""
        T, log_eta = self.weights(n)
        T = np.abs(T)
        A = np.asarray(nemon.contractive(T, log_eta, gamma))
        return A, self.normal(size=(rows, n)), np.exp(log_eta)


@pytest.fixture
def draws():
    return Draws()
