# One target per verb. Each builds what it needs, starting from Python >= 3.11 alone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

# Installs $(1), printing the purpose ($(2)) and the large packages as they arrive; pip's own output goes to a log file.
define install
	@echo "$(2) ($(VENV)/pip.log has the details)"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt \
		--log $(VENV)/pip.log $(1) 2>/dev/null \
		| awk '/^ *(Downloading|Using cached) .*MB\)/ {sub(/^ */, "  "); print; fflush()} \
			/^Installing collected/ {print "  unpacking"; fflush()}' \
		|| { tail -n 30 $(VENV)/pip.log >&2; echo "installation failed" >&2; exit 1; }
endef

.DEFAULT_GOAL := help
.PHONY: help predict serve test test-fast lint typecheck bench clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'Pass options of a program in ARGS, for example: make predict ARGS="sampler=fixed"'

$(VENV)/.package: pyproject.toml constraints.txt
	@echo "creating an environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	$(call install,-e .,installing dlm with torch and lightning: a few minutes if nothing is cached)
	@touch $@

$(VENV)/.dev: $(VENV)/.package
	$(call install,-e '.[dev]',installing the development tools)
	@touch $@

predict: $(VENV)/.package  ## decode the bundled prompts with the bundled checkpoint
	$(BIN)/python -m dlm.predict $(ARGS)

$(VENV)/.serve: $(VENV)/.package
	$(call install,-e '.[serve]',installing the server's packages)
	@touch $@

serve: $(VENV)/.serve  ## serve the bundled checkpoint on http://127.0.0.1:8000
	$(BIN)/python -m dlm.serve $(ARGS)

bench: $(VENV)/.package  ## time the decoder against a plain reference loop
	$(BIN)/python -m dlm.bench $(ARGS)

test: $(VENV)/.dev  ## run the tests, one process per core, at most 8
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(ARGS)

# The core, and tests of each kind that start no program.
FAST := $(addprefix tests/,test_house.py test_text.py test_llm.py decoding/test_decoder.py decoding/test_noise.py \
	decoding/engines decoding/samplers/test_samplers.py decoding/kv models/attention/test_attention.py \
	models/io/test_loading.py data runs/test_leases.py runs/test_merging.py config evaluation/graders \
	evaluation/test_tasks.py likelihood/test_replay.py rl/test_likelihoods.py serving/engine serving/test_openai.py \
	report/test_pareto.py)

test-fast: $(VENV)/.dev  ## run the core tests and one of each kind, in a minute
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile $(FAST) $(ARGS)

lint: $(VENV)/.dev  ## check style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

typecheck: $(VENV)/.dev  ## check types
	$(BIN)/mypy

clean:  ## remove the environment and caches, keep results
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
