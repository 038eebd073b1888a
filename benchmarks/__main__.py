"""The command line: `python -m benchmarks NAME [--quick] [--out runs/bench]`."""

import argparse
import importlib
import time

import jax

from benchmarks import report

NAMES = (
    "convergence",
    "steps",
    "adjoint",
    "step",
    "width",
    "ensemble",
    "scaling",
    "accuracy",
    "nemon",
    "gpu",
    "fuzz",
)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=(*NAMES, "all"))
    parser.add_argument(
        "--quick", action="store_true", help="smaller sizes and fewer repetitions"
    )
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="the smallest sizes that still run everything; for tests",
    )
    parser.add_argument(
        "--out", default="runs/bench", help="folder of the JSON, CSV and PNG files"
    )
    options = parser.parse_args(args)
    size = "tiny" if options.tiny else "quick" if options.quick else "full"
    for name in NAMES if options.name == "all" else (options.name,):
        start = time.perf_counter()
        print(f"\n== {name} ({size})", flush=True)
        module = importlib.import_module(f"benchmarks.{name}")
        # Measured in float32; the exact references ask for float64 themselves.
        with jax.enable_x64(False):
            found = module.run(size)
        report.publish(found, name, size, options.out)
        print(f"{name}: {time.perf_counter() - start:.0f} s")
        # No benchmark uses the programs of another:
        # docs/notes/xla.md#programs-in-one-process.
        jax.clear_caches()


if __name__ == "__main__":
    main()
