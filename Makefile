# make demo   5 networks with implicit bias beside 5 standard ones on scikit-learn's digits, in a few minutes
# make test   the tests
# Both make their own environment, in VENV, the first time.

VENV ?= .venv
# The first interpreter that really runs and is new enough (a name on the PATH may be a shim that does not).
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	$$p -c 'import sys, venv; assert (3, 11) <= sys.version_info[:2]' 2>/dev/null && { echo $$p; break; }; done)
# Where a demo run goes: the same folder again shows the finished run.
OUT ?= runs/demo
# A file's tests share compiled code, so they stay together.
PYTEST_ARGS ?= -n 2 --dist loadfile -q

.PHONY: demo test lint clean

demo: $(VENV)/ready
	$(VENV)/bin/python -m train --dataset digits --model both --seeds 5 --epochs 40 --solver meanfield --out $(OUT)

test: $(VENV)/ready
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/ready
	$(VENV)/bin/python -m pip install -q ruff
	$(VENV)/bin/python -m ruff check .

$(VENV)/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; give one by make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --upgrade pip
	$(VENV)/bin/python -m pip install -q -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
