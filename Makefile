# Each target is one command on a machine that has Python 3.10 or later and make: it makes .venv, installs, and works.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two single-threaded workers use two cores better than two threads in one process.
# By file: some files' tests go on from each other, and share what is costly to make.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-slow test-faults fuzz mutation benchmark docs package quality audit format clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP)  ## Make .venv and install the library with everything that tests and checks need.

$(STAMP): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[test,quality]'
	touch $(STAMP)

quickstart: $(STAMP)  ## Pool, meta-learning, evaluation, model and card, without network or data (minutes on 2 cores).
	$(BIN)/hf-dfml quickstart

test: $(STAMP)  ## The test suite (under 12 minutes on 2 cores).
	$(PYTEST) --durations=15

test-slow: $(STAMP)  ## The tests that take minutes each.
	$(PYTEST) -m slow --timeout 3600

test-faults: $(STAMP)  ## Kill runs and pushes at any moment, let processes die, fill disks: nothing is lost.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 -s -m faults --timeout 1800

fuzz: $(STAMP)  ## 10,000 damaged files and requests: each is used or refused with a sentence (under 15 minutes on 2 cores).
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz.py

benchmark: $(STAMP)  ## Measure speed and memory, and write docs/benchmarks.md (10 to 25 minutes on 2 cores alone).
	$(BIN)/python benchmarks/make_benchmarks.py

mutation: $(STAMP)  ## Small faults on purpose: which share of a seeded sample do the tests catch (at most 40 minutes)?
	$(BIN)/python -m pip install --quiet 'mutmut>=3.8'
	$(BIN)/python benchmarks/mutation.py

docs: $(STAMP)  ## Build the site into site/; warnings are errors.
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/mkdocs build --strict

package: $(STAMP)  ## Build wheel and sdist into dist/, check them, use the wheel in an empty folder (10 minutes).
	PYTHON=$(BIN)/python bash .ci/package --light

quality: $(STAMP)  ## Lint, formatting, types, known vulnerabilities of what is installed.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python .ci/audit.py --warn

audit: $(STAMP)  ## Fail for known vulnerabilities of installed packages that a newer version mends.
	$(BIN)/python .ci/audit.py

format: $(STAMP)  ## Mend what ruff can mend.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment and every cache (runs/ and pools/ stay).
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache mutants
