# Every target sets up what it needs in .venv; `make` alone explains them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SIZE ?= full
SEED ?= 1
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=25
# Threads that spin while they wait take the core from the other process on a shared machine.
export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format wheel clean

help: ## Show this list
	@echo "Usage: make TARGET"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

$(BIN)/python:
	@scripts/system-packages.sh python3-venv:ensurepip
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip

# torch comes first and pinned: a bare `torch` pulls gigabytes of CUDA packages.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt torch==2.13.0
	$(PIP) install -c constraints.txt -e '.[eval]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.demo
	$(PIP) install -c constraints.txt -e '.[eval,dev,deepspeed,sweep,lora,quantize,corpora,ray,dashboard,remote,serve]'
	@touch $@

demo: $(VENV)/.demo ## Train all four stages on the small spoken world, measure them, write one HTML page (about 15 minutes on 2 cores)
	@scripts/system-packages.sh espeak-ng flite
	$(BIN)/python -m vita_audio_pl.demo size=$(SIZE) seed=$(SEED)

test: $(VENV)/.dev ## Run the test suite (no network; 7 to 14 minutes on 2 cores)
	@scripts/system-packages.sh espeak-ng flite chromium
	$(PYTEST) -m "not slow and not gpu"

test-slow: $(VENV)/.dev ## Run the tests that take minutes each; SLOW="PATH ..." or SLOW="-m ci" for some of them
	@scripts/system-packages.sh espeak-ng flite chromium
	$(PYTEST) -m "slow and not gpu" $(SLOW)

lint: $(VENV)/.dev ## Check style, types, the direction of imports and the Dockerfile; build the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(VENV)/.dev ## Rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/.dev ## Build the wheel into dist/
	$(PIP) wheel --no-deps --wheel-dir dist .

clean: ## Remove caches and built files; data/ and runs/ stay
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
