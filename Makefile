# Every target sets up what it needs. Start with `make demo`; `make help` lists the rest.
#
# Variables, given as `make demo NAME=value`:
#   PYTHON   interpreter that makes .venv, 3.11 to 3.13              (python3)
#   TORCH    what pip installs as torch, options included            (torch, at the version in constraints.txt)
#            a machine without a GPU: TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
#            another CUDA:           TORCH="torch --index-url https://download.pytorch.org/whl/cu126"
#   JOBS     test processes                                          (2)
#   ARGS     more arguments for pytest, such as ARGS="tests/unit/stats -x"; coverage is then shown, not enforced

PYTHON ?= python3
TORCH  ?= torch
JOBS   ?= 2
ARGS   ?=

BIN  := .venv/bin
PIP  := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
EXACT := */nullarm/study/*,*/nullarm/store/*,*/nullarm/stats/*

export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs bench bench-gpu constraints clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: .venv/installed  ## Set up, run the built-in tiny study, print its verdicts and the path of its report.
	$(BIN)/nullarm demo

test: .venv/installed-dev  ## Set up and run the tests, coverage shown.
	$(BIN)/pytest --numprocesses $(JOBS) --dist loadfile --cov --cov-report term:skip-covered $(ARGS)
ifeq ($(ARGS),)
	@echo "Coverage of study, store and stats, 95 % at least:"
	$(BIN)/coverage report --include '$(EXACT)' --fail-under 95
endif

lint: .venv/installed-dev  ## Check style, formatting and types.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv/installed  ## Write the generated pages: CLI reference, JSON Schema of the study file.
	$(BIN)/python docs/generate.py

bench: .venv/installed  ## Run the benchmarks that need no GPU.
	@for file in benchmarks/*.py; do echo "── $$file"; $(BIN)/python $$file || exit 1; done

bench-gpu: .venv/installed  ## Run the benchmarks that need a GPU.
	@for file in benchmarks/gpu/*.py; do echo "── $$file"; $(BIN)/python $$file || exit 1; done

constraints: .venv/installed-dev  ## Write constraints.txt from what is installed in .venv.
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable \
		| sed 's/+[A-Za-z0-9.]*$$//' | grep -v -E '^(nvidia-[^m]|triton)'; } > .venv/constraints.txt
	@mv .venv/constraints.txt constraints.txt

clean:  ## Remove .venv and caches; studies under runs/ stay.
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*

# torch comes first and by itself: what depends on it then keeps the build that was asked for.
.venv/torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "error: $(PYTHON) is not Python 3.11 to 3.13; next: make PYTHON=python3.11" >&2; exit 2; }
	@echo "setting up .venv: PyTorch"
	@$(PYTHON) -m venv .venv
	@$(PIP) $(TORCH)
	@touch $@

.venv/installed: .venv/torch pyproject.toml
	@echo "setting up .venv: nullarm and what it needs"
	@$(PIP) --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	@echo "setting up .venv: test tools"
	@$(PIP) --editable '.[dev]'
	@touch $@
