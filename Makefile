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

test-fast: $(READY) ## run what takes less than two minutes
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

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

bench-query: $(READY) ## measure what reading costs, from a thousand steps to a million (several minutes)
	@$(BIN)/python -m benchmarks.query

bench-page: $(READY) ## measure how soon the page of a run can be used and what it weighs (needs Chromium; several minutes)
	@$(BIN)/python -m benchmarks.page

screenshots: $(READY) ## take the pictures of docs/images anew (needs Chromium)
	@$(BIN)/python -m tests.e2e.screenshots

clean: ## remove the environment and everything generated
	@rm -rf $(VENV) .gradmedic benchmarks/.cache dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help install demo serve test test-fast check bench-diagnosis bench-ingest bench-query bench-page screenshots clean
