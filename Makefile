# One command a verb. Each builds what it needs from nothing but Python >= 3.11.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help predict serve test lint typecheck bench clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'Options of a program go into ARGS, for example: make predict ARGS="sampler=fixed"'

$(VENV)/.package: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.package
	$(PIP) -e '.[dev]'
	@touch $@

predict: $(VENV)/.package  ## decode the bundled prompts with the bundled checkpoint
	$(BIN)/python -m dlm.predict $(ARGS)

$(VENV)/.serve: $(VENV)/.package
	$(PIP) -e '.[serve]'
	@touch $@

serve: $(VENV)/.serve  ## serve the bundled checkpoint on http://127.0.0.1:8000
	$(BIN)/python -m dlm.serve $(ARGS)

bench: $(VENV)/.package  ## time the decoder against a plain reference loop
	$(BIN)/python -m dlm.bench $(ARGS)

test: $(VENV)/.dev  ## run the tests, a process for each of at most 8 cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile $(ARGS)

lint: $(VENV)/.dev  ## check style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

typecheck: $(VENV)/.dev  ## check types
	$(BIN)/mypy

clean:  ## remove the environment and the caches, keep results
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
