# Federated QuaRC: what a user runs. Every target sets up what it needs.

# The virtual environment; one that exists is reused.
VENV ?= .venv
# The Python that a new environment is made with: 3.11 or later.
PYTHON ?= python3
# Handed to pip, for example an index of CPU-only torch wheels.
PIP_ARGS ?=

# make simulate: a scenario's name or path, settings that replace its own, the results' folder.
SCENARIO ?= digits
SET ?=
OUT ?=

export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1

BIN := $(VENV)/bin
# Says for which checkout the environment was made; another one has to install itself anew.
STAMP := $(VENV)/.fedquarc-installed
INSTALLED := $(shell cat '$(STAMP)' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help install simulate test lint clean always

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## Make the environment (VENV, PYTHON, PIP_ARGS) and install the project into it

simulate: $(STAMP) ## Run a federation on this machine (SCENARIO=digits SET='key=value ...' OUT=dir)
	@$(BIN)/python -m simulations run '$(SCENARIO)' $(if $(SET),--set $(SET)) $(if $(OUT),--out '$(OUT)')

test: $(STAMP) ## Run the tests
	@$(BIN)/python -m pytest

lint: $(STAMP) ## Check format, style and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

clean: ## Remove caches and build leftovers; keeps the environment and the results
	@rm -rf build dist ./*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find client common server simulations tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml $(if $(filter $(CURDIR),$(INSTALLED)),,always)
	@echo 'Installing the project into $(VENV): minutes the first time, most of it torch'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) --editable '.[simulation,dev]'
	@printf '%s\n' '$(CURDIR)' > $@

always:
