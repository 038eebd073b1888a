"""A few batches of the fuzz in `benchmarks.fuzz`, whose full size runs by hand."""

import numpy as np
import pytest

from benchmarks.fuzz import CHECKS, Batch, check

BATCHES = [
    Batch("uniform", (150,), "auto", "float32", 60),
    Batch("uniform", (5,), "Newton", "float32", 100),
    Batch("window", (5, 7), "auto", "float32", 60),
    Batch("dense", (12,), "Broyden", "float64", 60),
    Batch("vmap", (9,), "auto", "float32", 60),
    Batch("uniform", (17,), "Anderson", "float32", 60),
]


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_what_claims_convergence_is_right_and_so_are_its_gradients(batch):
    shares, claimed, names = check(batch)
    assert claimed.mean() > 0.85
    for name in CHECKS:
        wrong = np.flatnonzero(shares[name] > 1)
        assert not len(wrong), (name, [(names[k], shares[name][k]) for k in wrong])
    assert shares["residual"].any() and shares["y"].any()
