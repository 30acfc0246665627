# Everything is set up inside the checkout, in .venv/, and remade when the packaging changes.
# Written for any make: GNU make 3.81 (macOS) and newer, and BSD make.

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=

BIN = .venv/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input

# Stamps: what of setup.cfg is installed in .venv.
INSTALLED = .venv/installed
INSTALLED_TEST = .venv/installed-test
INSTALLED_LINT = .venv/installed-lint
INSTALLED_BENCH = .venv/installed-bench
INSTALLED_BREAKPAD = .venv/installed-breakpad

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' Makefile

venv: $(INSTALLED)  ## set up .venv/ with devserver in it (PYTHON=python3.12 chooses the Python)

demo: $(INSTALLED)  ## a sample build, a server and one staged build, to see devserver work
	@$(BIN)/devserver demo

test: $(INSTALLED_TEST) $(INSTALLED_BREAKPAD)  ## run the tests (PYTEST_ARGS='-k ranges' chooses some)
	@$(BIN)/python -m pytest -n 4 --dist loadfile $(PYTEST_ARGS)

lint: $(INSTALLED_LINT)  ## check style, formatting and types
	@echo "ruff check"
	@$(BIN)/ruff check .
	@echo "ruff format --check"
	@$(BIN)/ruff format --check .
	@echo "mypy"
	@$(BIN)/mypy

bench: $(INSTALLED_BENCH) $(INSTALLED_BREAKPAD)  ## measure against the peers (BENCH_ARGS=... chooses what)
	@.ci/bench_tools
	@$(BIN)/python -m bench $(BENCH_ARGS)

clean:  ## remove .venv/ and everything else that make made
	rm -rf .venv build dist devserver.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name .git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED): setup.cfg pyproject.toml .ci/make_venv.py
	@$(PYTHON) .ci/make_venv.py .venv
	@echo "Installing devserver and the libraries it uses into .venv (about a minute, once) ..."
	@$(PIP_INSTALL) --editable .
	@touch $@

$(INSTALLED_TEST): $(INSTALLED)
	@echo "Installing what the tests need ..."
	@$(PIP_INSTALL) --editable '.[test]'
	@touch $@

$(INSTALLED_LINT): $(INSTALLED)
	@echo "Installing ruff and mypy ..."
	@$(PIP_INSTALL) --editable '.[lint]'
	@touch $@

$(INSTALLED_BENCH): $(INSTALLED)
	@echo "Installing what the benchmarks measure against ..."
	@$(PIP_INSTALL) --editable '.[bench]'
	@touch $@

$(INSTALLED_BREAKPAD): $(INSTALLED)
	@.ci/breakpad_tools .venv/breakpad $@

# Two installations at once would spoil .venv.
.NOTPARALLEL:
.PHONY: help venv demo test lint bench clean
