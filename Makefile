# Ackord's commands; `make` lists them. Everything made here is in .venv and .ackord.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
CONFIG ?= cluster.yaml
DEVCLUSTER = $(BIN)/python -m ackord_node.devcluster --config $(CONFIG)
WORKERS ?= 2
SEEDS   ?= 500
FIRST   ?= 1
MINUTES ?= 5
CUTS    ?= 200
SECONDS ?= 60
PEERS   ?= all

.DEFAULT_GOAL := help
.PHONY: help venv cluster status stop clean demo test lint sim mutants chaos powerloss fuzz bench profile

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

$(STAMP): pyproject.toml requirements-dev.lock scripts/make-venv
	@scripts/make-venv $(VENV) $(PYTHON)
	@touch $@

venv: $(STAMP) ## the Python environment in .venv (only when something changed)
	@:

cluster: $(STAMP) ## start the cluster of cluster.yaml, or what is missing of it
	@$(DEVCLUSTER) up

status: $(STAMP) ## which processes run and are in service
	@$(DEVCLUSTER) status || [ $$? -eq 1 ] # 1: something is down, which was just said

stop: ## stop all nodes and the ZooKeeper that was started here
	@if [ -x $(BIN)/python ]; then $(DEVCLUSTER) stop; else echo "Nothing is running."; fi

clean: ## stop, and delete all data (.venv stays)
	@if [ -x $(BIN)/python ]; then $(DEVCLUSTER) clean; else rm -rf .ackord; fi

demo: cluster ## load real data, kill the busiest node under way, compare every row
	@$(BIN)/python -m bench.demo

test: $(STAMP) ## every test but the long chaos runs
	@$(DEVCLUSTER) install
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup -m "not chaos"

lint: $(STAMP) ## style, types and the ladder of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

sim: $(STAMP) ## whole clusters on virtual time under faults: SEEDS=500, FIRST=1
	@$(BIN)/python -m tests.sim $(FIRST) --seeds $(SEEDS) --jobs $(WORKERS)

mutants: $(STAMP) ## drop every rule and every condition, one at a time: all must be caught
	@$(BIN)/python -m tests.sim.mutants --write docs/mutants.md
	@$(BIN)/python -m tests.sim.drop_ifs

chaos: $(STAMP) ## break real processes, disks and networks under load: MINUTES=5, NODES=3, SEED=..., WORK=transfers, ONLY=kill (root)
	@$(DEVCLUSTER) install
	@scripts/install-chaos-packages
	@$(BIN)/python -m tests.chaos --minutes $(MINUTES) $(if $(NODES),--nodes $(NODES)) $(if $(SEED),--seed $(SEED)) \
		$(if $(WORK),--work $(WORK)) $(if $(ONLY),--only $(ONLY))

powerloss: $(STAMP) ## cut the power of loaded nodes at random instants: CUTS=200
	@$(DEVCLUSTER) install
	@$(BIN)/python -m tests.powerloss --cuts $(CUTS) --cluster-cuts 5

fuzz: $(STAMP) ## damaged and random input to every endpoint of a running node: SECONDS=60
	@$(DEVCLUSTER) install
	@$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

bench: $(STAMP) ## speed beside etcd, ZooKeeper, PostgreSQL, Redis (25 minutes): PEERS=none, SECONDS=2, PUBLISH=1
	@$(BIN)/python -m bench --peers $(PEERS) $(if $(filter file,$(origin SECONDS)),,--seconds $(SECONDS)) \
		$(if $(PUBLISH),--publish) $(if $(FULL),--full)

profile: $(STAMP) ## flame graphs of every process of Ackord under load: SECONDS=5, PUBLISH=1
	@$(BIN)/python -m bench.flames $(if $(filter file,$(origin SECONDS)),,--seconds $(SECONDS)) $(if $(PUBLISH),--publish)
