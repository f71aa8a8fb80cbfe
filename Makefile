# Every target sets up what it needs. `make` alone explains them.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help

help: ## say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m compileall -qq $(VENV)/lib || true # import time matters where .pyc files are not written on import
	@touch $@

install: $(READY) ## create the environment in .venv

demo: $(READY) ## train three real models and read their diagnoses
	@$(BIN)/gradmedic demo

serve: $(READY) ## start the service on http://127.0.0.1:8642 with a SQLite database in .gradmedic/
	@$(BIN)/gradmedic serve

test: $(READY) ## run the whole suite
	@$(BIN)/python -m pytest -n 2 --dist loadgroup

test-fast: $(READY) ## run what takes about two minutes
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

fuzz: $(READY) ## ask a running service everything that its OpenAPI document says, for long (EXAMPLES=300)
	@GRADMEDIC_FUZZ_EXAMPLES=$(or $(EXAMPLES),300) $(BIN)/python -m pytest tests/service/test_fuzz.py -q -p no:cacheprovider

check: $(READY) ## lint, types, import rules, spelling of the documented commands
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q -p no:cacheprovider tests/docs

bench-diagnosis: $(READY) ## judge the diagnosis on labelled runs (generates our own the first time: several minutes)
	@$(BIN)/python -m benchmarks.diagnosis

bench-ingest: $(READY) ## measure what storing costs, beside MLflow and trackio (installs them the first time)
	@$(BIN)/python -m benchmarks.ingest

bench-client: $(READY) ## measure what observing costs the training, beside wandb and TensorBoard (installs them; 12 minutes)
	@$(BIN)/python -m benchmarks.client

bench-query: $(READY) ## measure what reading costs, from a thousand steps to a million (several minutes)
	@$(BIN)/python -m benchmarks.query

bench-page: $(READY) ## measure how soon the page of a run can be used and what it weighs (needs Chromium; several minutes)
	@$(BIN)/python -m benchmarks.page

bench-faults: $(READY) ## kill or cut off each part of a rerun in the middle of a trial, also on Ray (a quarter of an hour)
	@$(BIN)/python -m benchmarks.faults

bench-reruns: $(READY) ## rerun failing configurations by our advice, at random and by AUTOTRAINER's order (half an hour; PART=1/4; others that a seed draws: DRAWN=1)
	@$(BIN)/python -m benchmarks.reruns --part $(or $(PART),1/1) $(if $(DRAWN),--drawn $(DRAWN))

experiments: $(READY) ## try every remedy on every failing configuration, and sweep clipping; redraws docs/images (half an hour)
	@$(BIN)/python -m benchmarks.experiments repairs --pictures docs/images
	@$(BIN)/python -m benchmarks.experiments clipping --pictures docs/images

bench-load: $(READY) ## stream 200 runs at once, then four times as much as that (some four minutes)
	@$(BIN)/python -m benchmarks.load

screenshots: $(READY) ## take the pictures of docs/images anew (needs Chromium)
	@$(BIN)/python -m tests.e2e.screenshots

clean: ## remove the environment and everything generated
	@rm -rf $(VENV) .gradmedic benchmarks/.cache dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help install demo serve test test-fast fuzz check bench-client bench-diagnosis bench-ingest bench-query bench-page bench-load bench-faults bench-reruns experiments screenshots clean
