# make demo: build .venv, install everything, train the built-in model. make test: every check, installing what it needs.

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
DEFINITION := pyproject.toml constraints.txt

# Idle threads that sleep instead of spinning: on a shared machine small steps are otherwise twenty times slower.
export OMP_WAIT_POLICY ?= PASSIVE
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: help browser demo test check fix docs types imports pytest torture install clean

help:
	@echo "make demo     build $(VENV), install everything, train the built-in model on the built-in shapes"
	@echo "make test     every check: format, lint, types, import rules, tests"
	@echo "make check    the same without the tests"
	@echo "make torture  kill a training sixty times with kill -9 and compare what comes out (half an hour)"
	@echo "make fix      format, and mend what the linter can mend"
	@echo "make docs     write docs/settings.md, what the plan predicts, and the tables of results anew"
	@echo "make clean    remove $(VENV) and caches"

demo: $(VENV)/.installed
	rm -rf runs/demo
	$(BIN)/vgpo-lite train --output runs/demo

test: check pytest

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# One thread a test process: the tests' tensors are small, and threads that wait for each other cost more than they bring.
pytest: $(VENV)/.installed-dev browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses logical --maxprocesses 4 --dist worksteal

# The pages are tested in a real browser. Where none can be installed, those tests say so and are skipped.
browser:
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome; } > /dev/null || { \
	  echo "Installing Chromium, in which the pages are tested ..."; \
	  install="timeout 300 apt-get install --yes --no-install-recommends -qq chromium"; \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get && { $$install || { timeout 120 apt-get update -qq && $$install; }; }; } > /dev/null 2>&1 \
	  || echo "It could not be installed here: run 'apt install chromium' as root for the tests of the pages."; }

torture: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/torture.py

fix: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-dev
	$(BIN)/python -m vgpo_lite.config.reference docs/settings.md
	$(BIN)/python benchmarks/cards.py
	$(BIN)/python benchmarks/tables.py

install: $(VENV)/.installed

$(VENV)/.installed: $(DEFINITION) | $(BIN)/python
	@echo "Installing vgpo-lite and what it needs into $(VENV); the first time fetches some gigabytes ..."
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(DEFINITION) | $(BIN)/python
	@echo "Installing vgpo-lite and the tools that check it into $(VENV); the first time fetches some gigabytes ..."
	@$(INSTALL) --editable '.[dev]'
	@$(INSTALL) --no-deps unsloth  # to read its signatures; it runs on a GPU only
	@touch $@ $(VENV)/.installed

$(BIN)/python:
	@set -e; for candidate in python3 python3.13 python3.12 python3.11; do \
	  if $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Building $(VENV) with $$($$candidate --version)"; exec $$candidate -m venv $(VENV); \
	  fi; \
	done; \
	echo "vgpo-lite needs Python 3.11 or newer with its venv module; found: $$(python3 --version 2>&1 || true)." >&2; \
	echo "Install one (Debian, Ubuntu: apt install python3.12 python3.12-venv) and run make again." >&2; exit 1

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist build
