# The two commands of the README, and the checks that CI runs. Each creates .venv when it is needed.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help quickstart test lint format clean

help:
	@echo "make quickstart   make, align and measure a small model from nothing, offline; then open its report"
	@echo "make test         run the tests"
	@echo "make lint         ruff, mypy, import-linter"
	@echo "make format       format the code"
	@echo "make clean        remove .venv and caches (runs/ stays)"

# Made anew when pyproject.toml changes. The mark is written last, so an interrupted install starts over.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llmkit needs Python 3.11 or newer; make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

quickstart: $(VENV)/.installed
	$(BIN)/llmkit run --config configs/quickstart.yaml
	$(BIN)/llmkit report runs/quickstart

# One worker a core; each worker's torch keeps to one thread, so that workers do not fight for cores. Bytecode is kept
# whatever the environment says, since tests start hundreds of processes.
test: $(VENV)/.installed-dev
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build ./*.egg-info
