# Needs Python 3.11 or newer and make, nothing else. `make` alone lists what there is.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

# The first of these that runs and is new enough; choose another with `make install PYTHON=/path/to/python`.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$python; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-long lint format bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## virtual environment in .venv with everything at pinned versions

demo: install ## simulator and the whole pipeline, live in the terminal: make demo ARGS="--for 60s"
	@$(BIN)/cryptopulse demo $(ARGS)

test: install ## all tests
	$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

test-long: install ## tests too long for every change: 60 kills, every table torn in every way
	$(BIN)/pytest -n 2 -m long $(ARGS)

lint: install ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## put the code into the format that `make lint` checks
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## latency, throughput, memory and start-up, measured on this machine
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove the virtual environment, caches and the demo's tables
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist demo-lake
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The build back end is installed first, so that it is pinned too and pip needs no second environment for it.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found; name it: make install PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Python's venv module does not work; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV); the first time takes about a minute."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling editables
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[dev]'
	@touch $@
