# Each target installs what it needs. `make` without a target lists them.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_READY := $(VENV)/.ready-demo

.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# An environment for an extra; `dev` has what `demo` has.
install_extra = @{ test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); } && \
	echo "Installing gradmedic[$(1)] into $(VENV) (a few minutes the first time) ..." && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(1)]' && \
	{ $(BIN)/python -m compileall -qq $(VENV)/lib || true; } # where imports write no .pyc files, they would be slow

$(READY): pyproject.toml constraints.txt
	$(call install_extra,dev)
	@touch $(DEMO_READY) $@

$(DEMO_READY): pyproject.toml constraints.txt
	$(call install_extra,demo)
	@touch $@

install: $(READY) ## create the environment in .venv

demo: $(DEMO_READY) ## train three real models and read their diagnoses (installs only what that needs)
	@$(BIN)/gradmedic demo

serve: $(DEMO_READY) ## start the service on http://127.0.0.1:8642 with a SQLite database in ~/.local/share/gradmedic
	@$(BIN)/gradmedic serve

# Where imports write no .pyc files, each process would compile all tests anew: a third of the time of their collection.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest

test: $(READY) ## run the whole suite (WORKERS=4; the default is for two cores and 8 GB)
	@$(PYTEST) -n $(or $(WORKERS),3) --dist loadgroup

test-fast: $(READY) ## run what takes about two minutes
	@$(PYTEST) -n $(or $(WORKERS),3) --dist loadgroup -m "not slow"

fuzz: $(READY) ## send many random requests to a running service, drawn from its OpenAPI document (EXAMPLES=300)
	@GRADMEDIC_FUZZ_EXAMPLES=$(or $(EXAMPLES),300) $(BIN)/python -m pytest tests/service/test_fuzz.py -q -p no:cacheprovider

check: $(READY) ## check style, types, import rules and the documented commands
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q -p no:cacheprovider -m "not slow" tests/docs

check-cuda: $(READY) ## test and time the SDK on one GPU (a minute; without a GPU, what a CPU can run)
	@$(BIN)/python -m pytest -q -rs -p no:cacheprovider tests/cuda
	@$(BIN)/python -m benchmarks.gpu

bench-diagnosis: $(READY) ## measure the diagnosis on labelled runs (the first run generates them: several minutes)
	@$(BIN)/python -m benchmarks.diagnosis

bench-foreign: $(READY) ## measure the diagnosis on trainings of other kinds, recorded at the default sampling (40 minutes)
	@$(BIN)/python -m benchmarks.foreign_runs

bench-causes: $(READY) ## measure how often the true cause is named on runs with a known one (8 minutes; RACE=1 races the advice)
	@$(BIN)/python -m benchmarks.causes $(if $(RACE),--race)

bench-origin: $(READY) ## measure how often the operation and the line of a NaN are named right (4 minutes; SEED=3 draws other programs)
	@$(BIN)/python -m benchmarks.origin --seed $(or $(SEED),2)

bench-guards: $(READY) ## measure what guards save, touch and cost, beside rules that clip (20 minutes; PART=trainings or cost; PROGRAMS=12; SEED=2)
	@$(BIN)/python -m benchmarks.guards --part $(or $(PART),all) --programs $(or $(PROGRAMS),60) --seed $(or $(SEED),1)

bench-busy: $(READY) ## compare the answers on the same trainings and reruns on a quiet and on a busy machine (25 minutes)
	@$(BIN)/python -m benchmarks.busy

bench-sensitivity: $(READY) ## print what changes when a constant of the diagnosis is half or twice as large (20 minutes)
	@$(BIN)/python -m benchmarks.sensitivity

bench-ingest: $(READY) ## measure the cost of storing steps, beside MLflow and trackio (the first run installs them)
	@$(BIN)/python -m benchmarks.ingest

bench-client: $(READY) ## measure the SDK's cost for the training, beside wandb and TensorBoard (installs them; 12 minutes, more on a busy machine)
	@$(BIN)/python -m benchmarks.client

bench-query: $(READY) ## measure the cost of reading runs of a thousand to a million steps (several minutes)
	@$(BIN)/python -m benchmarks.query

bench-page: $(READY) ## measure the load time and the size of a run's page (needs Chromium; several minutes)
	@$(BIN)/python -m benchmarks.page

bench-start: $(READY) ## measure the CPU time until each command is ready (a minute)
	@$(BIN)/python -m benchmarks.start

bench-faults: $(READY) ## kill or disconnect each part of a rerun during a trial, also on Ray (15 minutes)
	@$(BIN)/python -m benchmarks.faults

bench-reruns: $(READY) ## rerun failing trainings by our advice, at random and in AUTOTRAINER's order (2 hours; SET=own, drawn or published; PART=1/4; STRATEGY=gradmedic; SEED=1)
	@$(BIN)/python -m benchmarks.reruns --part $(or $(PART),1/1) --seed $(or $(SEED),1) $(addprefix --set ,$(SET)) $(addprefix --strategy ,$(STRATEGY))

experiments: $(READY) ## try every remedy on every failing training, sweep clipping, train each condition; redraws their pictures (30 minutes)
	@$(BIN)/python -m benchmarks.experiments repairs --pictures docs/images
	@$(BIN)/python -m benchmarks.experiments clipping --pictures docs/images
	@$(BIN)/python -m benchmarks.experiments conditions --pictures docs/conditions/images

bench-load: $(READY) ## stream 200 runs at once, then four times as many blocks, beside attacks, and 2,000 runs (8 minutes)
	@$(BIN)/python -m benchmarks.load

screenshots: $(READY) ## take the screenshots of docs/images again (needs Chromium)
	@$(BIN)/python -m tests.e2e.screenshots

clean: ## remove the environment and everything generated
	@rm -rf $(VENV) .gradmedic benchmarks/.cache dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help install demo serve test test-fast fuzz check check-cuda bench-client bench-diagnosis bench-foreign bench-causes bench-origin bench-guards bench-busy bench-sensitivity bench-ingest bench-query bench-page bench-start bench-load bench-faults bench-reruns experiments screenshots clean
