# make demo    5 networks with implicit bias beside 5 standard ones, in a few minutes
# make test    the tests
# make lint    format, lint, types
# make docs    the documentation, in site/
# Each makes its own environment, in VENV, the first time.

VENV ?= .venv
# The first interpreter that really runs and is new enough: a name on the PATH may be
# a shim that does not.
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	$$p -c 'import sys, venv; assert (3, 11) <= sys.version_info[:2]' 2>/dev/null \
	&& { echo $$p; break; }; done)
# Where a demo run goes: the same folder again shows the finished run.
OUT ?= runs/demo
# A file's tests share compiled code, so they stay together.
PYTEST_ARGS ?= -n 2 --dist loadfile -q
# Solve, adjoint, kernels, layers and one training: what a second Python is tried on.
QUICK_TESTS = tests/ibnn/test_equation.py tests/core/test_adjoint.py \
	tests/ibnn/mean_field/test_pallas.py tests/nn/test_layers.py \
	tests/train/test_loop.py::test_shapes_types_and_learning

.PHONY: demo test quick lint docs clean

demo: $(VENV)/ready
	$(VENV)/bin/python -m train --as-paper --dataset digits --model both --seeds 5 --epochs 40 \
		--solver meanfield --out $(OUT)

test: $(VENV)/ready
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

quick: $(VENV)/ready
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS) $(QUICK_TESTS)

lint: $(VENV)/ready
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m pip install -q 'pyright[nodejs]'
	$(VENV)/bin/python -m pyright --pythonpath $(VENV)/bin/python

docs: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

$(VENV)/ready: pyproject.toml
	@test -n "$(PYTHON)" || { \
		echo "Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python"; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --upgrade pip
	$(VENV)/bin/python -m pip install -q -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .ruff_cache
