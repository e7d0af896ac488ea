# `make demo` and `make test` do all the set-up on a fresh machine: own .venv, pinned versions, one torch.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= lingualift-demo
MODULES ?=
SHARED ?= ../shared
STUDY ?= runs/study
REAL ?=
PIP_OPTIONS ?=

# Else every process of a test compiles the libraries again.
unexport PYTHONDONTWRITEBYTECODE

# By file, so that what a module shares is made once; groups have no effect with pytest 9.2 and xdist 3.8.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile

.PHONY: demo test test-all gates study study-real mutants clean

demo: .venv/.user
	$(BIN)/lingualift demo --output $(DEMO)

test: gates
	$(PYTEST) -m 'not slow'

# All that `test` runs, and the tests marked `slow`: before an issue is resolved.
test-all: gates
	$(PYTEST)

gates: .venv/.developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Hours; what is finished is not done again.
study: .venv/.developer
	$(BIN)/python study/run.py --shared $(SHARED) --work $(STUDY)
	$(BIN)/python study/effects.py --work $(STUDY)
	$(BIN)/python study/figures.py

# On pretrained models, which lie in REAL; hours. What has rows in study/rows is not run again.
study-real: .venv/.developer
	$(BIN)/python study/real.py --real $(REAL) --shared $(SHARED) --work runs/study-real
	$(BIN)/python study/real_effects.py

mutants: .venv/.developer
	$(BIN)/mutmut run $(MODULES)
	$(BIN)/mutmut results | grep -v 'not checked' || true

# One call for everything: the constraints pin torch, so that nothing pulls a second one.
INSTALL = $(BIN)/python -m pip install --quiet $(PIP_OPTIONS) --constraint constraints.txt --editable

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.user: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) .
	touch $@

.venv/.developer: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) '.[dev]'
	touch .venv/.user $@

clean:
	rm -rf .venv lingualift-demo mutants
