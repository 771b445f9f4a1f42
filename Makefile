# Ackord's commands; `make` lists them. Everything made here is in .venv and .ackord.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
CONFIG ?= cluster.yaml
DEVCLUSTER = $(BIN)/python -m ackord_node.devcluster --config $(CONFIG)
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help venv cluster status stop clean demo test lint chaos bench

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
	@$(BIN)/python bench/demo.py

test: $(STAMP) ## every test but the long chaos runs
	@$(DEVCLUSTER) install
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup -m "not chaos"

lint: $(STAMP) ## style, types and the ladder of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

chaos: $(STAMP) ## kill and pause nodes under load and check every answer
	@$(DEVCLUSTER) install
	@$(BIN)/python -m pytest -q -s -m chaos tests/chaos

bench: cluster ## speed of the running cluster
	@$(BIN)/python bench/bench.py
