"""Every CPU core as a device of its own, over which a run spreads its seeds."""

import os


def count_cores_as_devices() -> None:
    """Tell JAX to make a device of every CPU core.

    XLA gives all cores to one program, but a solver's small operations use hardly more
    than one. By an environment variable, which JAX reads when it is imported: so this
    comes before, and commands that need no JAX need not import it. A number of devices
    that the user has set, there or in XLA_FLAGS, stays.
    """
    if "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    of_process = getattr(os, "sched_getaffinity", None)  # not everywhere
    cores = len(of_process(0)) if of_process else os.cpu_count() or 1
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(cores))
