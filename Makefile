# Everything a newcomer needs: `make demo` and `make test`. `make` alone lists the rest.
PYTHON ?= python3
DEVICE ?= auto
BIN    := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all results check lint-docker format serve doctor clean
MAKEFLAGS += --no-print-directory

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## install into .venv (PYTHON=python3.12, DEVICE=cpu|gpu to choose)
	@command -v $(PYTHON) >/dev/null || \
		{ echo "setup: $(PYTHON) is not on this machine: install Python 3.11 or newer."; exit 1; }
	@$(PYTHON) deploy/install.py --device $(DEVICE)

demo: setup  ## distil a draft, serve it, print what it gains (about 15 minutes; an hour where bf16 is emulated)
	@$(BIN)/draftsmith demo

serve: setup  ## serve the target, and its draft if one is registered
	@$(BIN)/draftsmith serve

doctor: setup  ## say what this machine has and lacks
	@$(BIN)/draftsmith doctor

test: setup  ## the tests of every day (no GPU, no long runs)
	@$(BIN)/python -m pytest --quiet --durations=5 -n 2 --dist loadgroup

test-all: setup  ## every test, the slow and the GPU ones too
	@$(BIN)/python -m pytest --quiet --durations=10 -n 2 --dist loadgroup -m "slow or not slow"

results: setup  ## docs/results.md anew (hours; PROMPTS=questions.jsonl)
	@$(BIN)/python benchmarks/results.py --prompts $(PROMPTS)

check: setup  ## format, lint, types, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest --quiet tests/test_layers.py

format: setup  ## let ruff format and mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lint-docker: setup  ## hadolint on the Dockerfile
	@$(BIN)/hadolint Dockerfile && echo "Dockerfile: no complaint"

clean:  ## remove caches and build leftovers (never models, runs or .venv)
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache *.egg-info
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
