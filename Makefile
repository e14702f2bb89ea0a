# make run     install and train the default: a VAE on the embedded handwritten digits
# make test    install and run the tests
# make check   formatter, linter, types and tests: what CI runs
# make lint    formatter, linter and types alone
# make results docs/results.md anew, from the records in docs/results/
# make format  rewrite the code in the formatter's style

VENV := .venv
BIN := $(VENV)/bin
# the first Python that gentrain supports (3.11 to 3.13), `python3` itself if it is one of them
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
JOBS ?= 2

.PHONY: run test check lint results format clean

run: $(VENV)/installed
	$(BIN)/gentrain

test: $(VENV)/installed-dev
	$(BIN)/pytest -n $(JOBS) --dist loadfile -q

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

check: lint test

results: $(VENV)/installed
	$(BIN)/python -m gentrain.tasks.results

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11, 3.12 or 3.13 found; install one or say make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
