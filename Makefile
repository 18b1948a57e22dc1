# Every target works on a fresh machine: the virtual environment is made with pip and needs nothing else.
PYTHON ?= python3
BIN := .venv/bin
CONFIG ?= configs/demo.yaml

.PHONY: demo miniature test lint format verify chaos bench-ledger bench-inference clean

# Installed when its definition is newer than the environment.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/python -m jobs.pipeline $(CONFIG)

miniature: .venv/installed
	$(BIN)/python -m jobs.miniature $(CONFIG) root=out/miniature

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

verify: .venv/installed
	$(BIN)/python -m jobs.verify out/demo

chaos: .venv/installed
	HUMPBACK_RACE_ROUNDS=200 $(BIN)/python -m pytest tests/test_races.py
	$(BIN)/python -m pytest -m chaos
	$(BIN)/python -m tests.chaos

bench-ledger: .venv/installed
	$(BIN)/python -m tests.benchmarks.ledger

bench-inference: .venv/installed
	$(BIN)/python -m tests.benchmarks.inference

clean:
	rm -rf .venv out build
