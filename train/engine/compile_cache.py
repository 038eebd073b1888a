"""Compiled programs: kept on disk for later runs, and forgotten when there are many."""

import hashlib
import os
import platform
from pathlib import Path

MAPS = Path("/proc/self/maps")
CPU = Path("/proc/cpuinfo")


def enable(folder: str | None = None) -> Path | None:
    """Let JAX keep compiled programs in a folder, so that the next run starts faster.

    Args:
        folder: None takes $JAX_COMPILATION_CACHE_DIR, else a folder of this kind of
            machine in the user's cache folder; "off" keeps none.

    Returns:
        The folder; None if there is none, or it cannot be made.
    """
    import jax  # late: a finished run is shown without it

    if folder == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    given = folder or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    path = Path(given).expanduser() if given else _default_folder()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    return path


def _default_folder() -> Path:
    """Code for one CPU may not run on another: each kind has a folder of its own."""
    kind = platform.machine() + platform.processor()
    if CPU.exists():
        lines = CPU.read_text(errors="replace").splitlines()
        kind += "".join(
            sorted({x for x in lines if x.startswith(("model name", "flags"))})
        )
    digest = hashlib.sha256(kind.encode()).hexdigest()[:8]
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "ibnn_jax" / f"compiled-{digest}"


def release(limit: int = 15_000) -> None:
    """Forget compiled programs if this process holds more than `limit` memory maps.

    Linux grants a process 65,530 of them. On CPUs XLA keeps a program in some 2,000
    maps per implicit layer, and crashes when it gets no more. Where the system does not
    list them nothing happens.
    """
    import jax  # late: figures are drawn without it

    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > limit:
        jax.clear_caches()
