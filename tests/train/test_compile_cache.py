"""Compiled programs: kept on disk, and forgotten when there are many."""

import jax
import jax.numpy as jnp
import pytest

from train.engine import compile_cache


@pytest.fixture
def restored_settings():
    names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.skipif(
    not compile_cache.MAPS.exists(), reason="the system does not list memory maps"
)
def test_programs_are_forgotten_only_past_the_limit():
    traces = []

    @jax.jit
    def double(x):
        traces.append(x)
        return 2 * x

    double(jnp.ones(3))
    compile_cache.release(limit=10**9)
    double(jnp.ones(3))
    assert len(traces) == 1
    compile_cache.release(limit=0)
    assert (double(jnp.ones(3)) == 2).all() and len(traces) == 2


def test_a_system_without_memory_maps_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(compile_cache, "MAPS", tmp_path / "none")
    traces = []
    double = jax.jit(lambda x: (traces.append(x), 2 * x)[1])
    double(jnp.ones(3))
    compile_cache.release(limit=0)
    double(jnp.ones(3))
    assert len(traces) == 1


def test_where_compiled_programs_are_kept(restored_settings, monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compile_cache.enable()
    assert folder.parent == tmp_path / "ibnn_jax" and folder.is_dir()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "jax"))
    assert compile_cache.enable() == tmp_path / "jax"
    assert compile_cache.enable(str(tmp_path / "mine")) == tmp_path / "mine"
    (tmp_path / "file").write_text("")
    assert compile_cache.enable(str(tmp_path / "file" / "mine")) is None


def test_off(restored_settings):
    assert compile_cache.enable("off") is None
    assert not jax.config.jax_enable_compilation_cache
