# `make demo` and `make test` do all the set-up on a fresh machine: own .venv, pinned versions, one torch.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= lingualift-demo
MODULES ?=
SHARED ?= ../shared
STUDY ?= runs/study

PYTEST := $(BIN)/pytest -n 2 --dist loadgroup

.PHONY: demo test test-all gates study mutants clean

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

mutants: .venv/.developer
	$(BIN)/mutmut run $(MODULES)
	$(BIN)/mutmut results | grep -v 'not checked' || true

# torch goes first and alone: the constraints pin it, so that nothing that follows pulls a second one.
.venv/.user: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.developer: .venv/.user
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv lingualift-demo mutants
