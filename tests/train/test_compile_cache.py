import jax
import jax.numpy as jnp
import pytest

from train.engine import compile_cache


@pytest.mark.skipif(
    not compile_cache.MAPS.exists(), reason="the system does not list memory maps"
)
def test_programs_are_forgotten_only_past_the_limit():
    double = jax.jit(lambda x: 2 * x)
    double(jnp.ones(3))
    compile_cache.release(limit=10**9)
    assert double._cache_size() == 1
    compile_cache.release(limit=0)
    assert double._cache_size() == 0
    assert (double(jnp.ones(3)) == 2).all()


def test_a_system_without_memory_maps_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(compile_cache, "MAPS", tmp_path / "none")
    compile_cache.release(limit=0)
