"""Every benchmark on its smallest sizes runs and leaves its files; none is timed."""

import csv
import json

import pytest

from benchmarks.__main__ import NAMES, main


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs_and_leaves_its_files(name, tmp_path, capsys):
    main([name, "--tiny", "--out", str(tmp_path)])
    document = json.loads((tmp_path / f"{name}.json").read_text())
    assert (
        document["size"] == "tiny"
        and document["versions"]["jax"]
        and document["device"]
    )
    with (tmp_path / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(document["rows"]) > 0
    assert (tmp_path / f"{name}.png").stat().st_size > 1000
    assert "----" in capsys.readouterr().out


def test_the_exact_residual_of_a_solution_is_small_and_of_a_wrong_one_is_not():
    import numpy as np

    import ibnn_jax
    from benchmarks import inputs

    y = np.random.default_rng(0).normal(size=(3, 7, 7)).astype(np.float32)
    coupling = ibnn_jax.Uniform((-2, -1))
    z = ibnn_jax.solve(y, -0.5, 10.0, coupling, solver=ibnn_jax.Newton()).value
    assert inputs.true_residual(z, y, -0.5, 10.0, coupling).max() < 1e-5
    assert inputs.true_residual(y, y, -0.5, 10.0, coupling).min() > 0.1
