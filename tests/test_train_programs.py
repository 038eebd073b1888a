import jax
import jax.numpy as jnp
import pytest

from train import programs


@pytest.mark.skipif(
    not programs.MAPS.exists(), reason="the system does not list memory maps"
)
def test_programs_are_forgotten_only_past_the_limit():
    double = jax.jit(lambda x: 2 * x)
    double(jnp.ones(3))
    programs.release(limit=10**9)
    assert double._cache_size() == 1
    programs.release(limit=0)
    assert double._cache_size() == 0
    assert (double(jnp.ones(3)) == 2).all()


def test_a_system_without_memory_maps_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(programs, "MAPS", tmp_path / "none")
    programs.release(limit=0)
