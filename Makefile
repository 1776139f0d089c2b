# Each target makes its own environment in .venv when there is none, and installs what it needs
# and no more. A stamp file in .venv for each group of dependencies remembers what is there;
# a newer pyproject.toml makes every stamp stale.

PYTHON ?= python3
# Installed before the package: a pinned torch keeps installs reproducible, because the
# package's own requirement is then met and nothing newer is fetched.
TORCH ?= torch==2.13.0
# Processes that run the tests.
WORKERS ?= 2

VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet
SOURCES := sklearn_dualif tests examples benchmarks docs

# Test workers are processes: one thread in each, or they fight over the cores.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS)

# Two targets of one call share .venv, and pip can't install into it twice at once.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test test-all test-min lint docs bench clean

help:
	@echo "make demo      find the wrong rows of a real table, from the command line"
	@echo "make test      the fast tests"
	@echo "make test-all  every test, the slow ones too"
	@echo "make test-min  the fast tests on the oldest supported versions, in .venv-min"
	@echo "make lint      linter and formatter, changing nothing"
	@echo "make docs      the documentation, in docs/_build/html"
	@echo "make bench     speed and agreement beside other libraries"
	@echo "make clean     delete what was built (not .venv)"

demo: $(VENV)/.group-tables
	@$(BIN)/python examples/demo_table.py write demo/tumours.csv
	$(BIN)/sklearn-dualif audit demo/tumours.csv --target diagnosis --index patient \
	--out demo/audit --overwrite
	@$(BIN)/python examples/demo_table.py count demo/audit/issues.csv

test: $(VENV)/.group-tests
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.group-tests
	$(PYTEST)

# The lower bounds of the dependencies, taken as exact versions.
test-min:
	$(MAKE) test VENV=.venv-min TORCH="$$($(PYTHON) -c "$(READ_PYPROJECT); \
	print(*(bound.replace('>=', '==') for bound in project['dependencies']))")"

lint: $(VENV)/.linter
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

docs: $(VENV)/.group-docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/.group-benchmarks
	$(BIN)/python benchmarks/native.py

clean:
	rm -rf build dist demo docs/_build docs/auto_examples docs/generated
	rm -rf .pytest_cache .ruff_cache .hypothesis

READ_PYPROJECT := import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	"Python 3.11 or newer is needed and PYTHON is %s: try make PYTHON=python3.12" % sys.version)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.package: pyproject.toml | $(BIN)/python
	@echo "$(VENV): installing torch and sklearn-dualif (minutes, the first time)"
	@$(INSTALL) $(TORCH)
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.group-%: $(VENV)/.package
	@echo "$(VENV): installing what [$*] needs"
	@$(INSTALL) --editable ".[$*]"
	@touch $@

# The linter reads files only: it needs neither the package nor torch.
$(VENV)/.linter: pyproject.toml | $(BIN)/python
	@echo "$(VENV): installing the linter"
	@$(INSTALL) $$($(BIN)/python -c "$(READ_PYPROJECT); \
	print(*project['optional-dependencies']['lint'])")
	@touch $@
