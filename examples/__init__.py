"""Short programs, each run by the tests: `python -m examples.quickstart`."""
