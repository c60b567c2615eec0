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

# make bench: --quick, --out DIR; make cluster-keys: what else is done with keys; make cluster-watch.
ARGS ?=

# make cluster: the command, extra names and addresses of the server, a run's name, its id in Flower,
# one device.
COMPOSE ?= $(shell docker compose version > /dev/null 2>&1 && echo docker compose || echo docker-compose)
HOSTS ?=
RUN ?=
RUN_ID ?=
DEVICE ?=
# Who the containers run as: you, or, if you are root, nobody else.
export FLEET_UID ?= $(or $(filter-out 0,$(shell id -u)),10001)
export FLEET_GID ?= $(or $(filter-out 0,$(shell id -g)),10001)
export FLEET_SECRETS ?= ./secrets
export FLEET_RUNS ?= ./runs

export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1

BIN := $(VENV)/bin
# Says for which checkout the environment was made; another one has to install itself anew.
STAMP := $(VENV)/.fedquarc-installed
INSTALLED := $(shell cat '$(STAMP)' 2>/dev/null)

.DEFAULT_GOAL := help
# $(call unless_set,key=value ...): those whose key SET does not name.
unless_set = $(foreach setting,$(1),$(if $(filter $(firstword $(subst =, ,$(setting)))=%,$(SET)),,$(setting)))

OPERATOR = $(COMPOSE) run --rm --no-deps operator python -m server
KEYS = $(OPERATOR) keys --dir /secrets
.PHONY: help install simulate bench test lint clean always
.PHONY: cluster cluster-run cluster-watch cluster-logs cluster-rotate cluster-revoke cluster-keys
.PHONY: cluster-down test-cluster

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## Make the environment (VENV, PYTHON, PIP_ARGS) and install the project into it

simulate: $(STAMP) ## Run a federation on this machine (SCENARIO=digits SET='key=value ...' OUT=dir)
	@$(BIN)/python -m simulations run '$(SCENARIO)' $(if $(SET),--set $(SET)) $(if $(OUT),--out '$(OUT)')

bench: $(STAMP) ## Time the project beside its peers, into docs/results (ARGS='--quick --out DIR')
	@$(BIN)/python -m simulations bench $(ARGS)

test: $(STAMP) ## Run the tests
	@$(BIN)/python -m pytest

lint: $(STAMP) ## Check format, style and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

cluster: ## Start the cluster in containers (HOSTS='names of this server'); see docs/cluster.md
	@mkdir -p '$(FLEET_RUNS)' && mkdir -p -m 700 '$(FLEET_SECRETS)'
	@if [ "$$(id -u)" = 0 ]; then chown $(FLEET_UID):$(FLEET_GID) '$(FLEET_RUNS)' '$(FLEET_SECRETS)'; fi
	@$(COMPOSE) build superlink proxy device-0
	@test -e '$(FLEET_SECRETS)/ca.crt' || $(KEYS) init --host superlink proxy localhost 127.0.0.1 \
		$(HOSTS) --device device-0 device-1 device-2
	@$(COMPOSE) up -d serverapp proxy
	@$(KEYS) register
	@$(COMPOSE) up -d

cluster-run: name := $(or $(RUN),cluster-$(shell date +%Y%m%d-%H%M%S))
cluster-run: ## Run a federation in the cluster and follow it (RUN=name SET='key=value ...')
	@$(OPERATOR) run --ca /secrets/ca.crt --app /app --restarts 3 --set 'run.resume=/runs/$(name)' \
		$(call unless_set,data.num-devices=3 federation.min-devices=3) $(SET)
	@echo 'results: $(FLEET_RUNS)/$(name)'

cluster-watch: ## Show the cluster's newest run on the terminal (RUN_ID=, ARGS=--once)
	@$(OPERATOR) watch --ca /secrets/ca.crt 'https://superlink:8000/$(RUN_ID)' $(ARGS)

cluster-logs: ## Follow what all services of the cluster say
	@$(COMPOSE) logs --follow --tail=100

cluster-rotate: ## Give a device of the cluster a new key (DEVICE=device-1)
	@test -n '$(DEVICE)' || { echo 'which device? make $@ DEVICE=device-1' >&2; exit 2; }
	@$(KEYS) rotate '$(DEVICE)'
	@$(COMPOSE) up -d --no-deps --force-recreate '$(DEVICE)'

cluster-revoke: ## Shut a device of the cluster out for good (DEVICE=device-1)
	@test -n '$(DEVICE)' || { echo 'which device? make $@ DEVICE=device-1' >&2; exit 2; }
	@$(KEYS) revoke '$(DEVICE)'
	@$(COMPOSE) rm --stop --force '$(DEVICE)'

cluster-keys: ## Anything else with the cluster's keys (ARGS='add pi-7', 'register pi-7')
	@$(KEYS) $(or $(ARGS),--help)

cluster-down: ## Remove the cluster and its state; keeps keys and results
	@$(COMPOSE) down --volumes --remove-orphans

test-cluster: ## Test the cluster in containers, with keys of its own; needs a container engine
	@docker/test-cluster

clean: ## Remove caches and build leftovers; keeps the environment and the results
	@rm -rf build dist ./*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find client common server simulations tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml $(if $(filter $(CURDIR),$(INSTALLED)),,always)
	@echo 'Installing the project into $(VENV): minutes the first time, most of it torch'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) --editable '.[simulation,dev]'
	@printf '%s\n' '$(CURDIR)' > $@

always:
