"""Compiled programs, of which one process can hold only so many."""

from pathlib import Path

MAPS = Path("/proc/self/maps")


def release(limit=15_000):
    """Forget compiled programs if they hold more than `limit` memory maps, of which Linux grants a process 65,530.

    On CPUs XLA keeps a program in some 2,000 maps per implicit layer, and crashes when it gets no more. Where there is no
    such file nothing happens.
    """
    import jax  # here, because figures are drawn without it

    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > limit:
        jax.clear_caches()
