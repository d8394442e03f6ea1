# Every target works on a fresh clone: it makes .venv (or reuses it), installs, and runs.

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
WORKERS ?= auto
OUT ?= out/demo
SHAPES ?= qwen3-vl-30b-a3b kimi-vl-a3b gpt-oss-20b small
export CXX

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TIMED := OMP_NUM_THREADS=1 THP_MEM_ALLOC_ENABLE=1
FOLDERS := passes calibration evaluation export bench

.PHONY: help venv test test-slow coverage kernels-report gpu-check demo demo-model bench \
	bench-history docs export-matrix eval-demo line-coverage lint types clean compiler
.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(INSTALLED) ## Install into .venv (PYTHON=python3.12, PIP_ARGS="--index-url ..." to choose)

test: lint compiler ## Check style and types, then run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

test-slow: $(INSTALLED) compiler ## Run the tests that start processes or calibrate, too slow for test
	$(BIN)/pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable '.[dev,quant,eval-core]'
	$(BIN)/pip install --quiet --constraint constraints.txt $(PIP_ARGS) --no-deps lmms-eval
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m slow

coverage: $(INSTALLED) ## Measure every MoE type of transformers, write docs/coverage.md and .json
	OMP_NUM_THREADS=1 $(BIN)/python -m modes_fx.bench.coverage --out docs

kernels-report: $(INSTALLED) ## Test and compile the GPU kernels without a GPU, write docs/kernels.*
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) -m grid tests/modes_fx/kernels/triton
	$(BIN)/python -m modes_fx.bench.gpu.report --out docs

gpu-check: $(INSTALLED) ## On a GPU: test the kernels and time them, write out/gpu/report.md
	$(BIN)/python -m modes_fx.bench.gpu.check --out out/gpu

docs: $(INSTALLED) ## Write the pages that are made from the code: docs/cli.md, docs/messages.md
	$(BIN)/python -m modes_fx.bench.documents --out docs

line-coverage: $(INSTALLED) compiler ## Which lines the tests run, into out/line-coverage/ (slower)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal \
		--cov=modes_fx --cov-report=term:skip-covered --cov-report=html:out/line-coverage

demo: $(INSTALLED) compiler ## Calibrate, compile, evaluate and time the demo model (OUT=out/demo)
	$(BIN)/modes-fx demo --out $(OUT)

demo-model: $(INSTALLED) ## Train the demo model again (up to 90 minutes)
	$(BIN)/python -m modes_fx.bench.demo_model.training --out bench/demo_model/checkpoint

eval-demo: $(INSTALLED) ## Score the demo model with lmms-eval, and compare with its own scores (minutes)
	$(BIN)/pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable '.[dev,eval-core]'
	$(BIN)/pip install --quiet --constraint constraints.txt $(PIP_ARGS) --no-deps lmms-eval
	OMP_NUM_THREADS=1 $(BIN)/python -m modes_fx.bench.evaluation

export-matrix: $(INSTALLED) compiler ## Export models of several types in every format, write docs/export-matrix.md (an hour)
	$(BIN)/pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable '.[dev,tensorrt]'
	OMP_NUM_THREADS=1 $(BIN)/python -m modes_fx.bench.export.matrix --out docs

bench: $(INSTALLED) compiler ## Time layers and a model, write docs/performance/ (half an hour, 6 GB)
	@mkdir -p docs/performance
	for shape in $(SHAPES); do \
		$(TIMED) $(BIN)/modes-fx bench layer --shape $$shape \
			--json docs/performance/$$shape.json --markdown docs/performance/$$shape.md || exit; \
	done
	$(TIMED) $(BIN)/modes-fx bench model \
		--json docs/performance/model.json --markdown docs/performance/model.md

bench-history: $(INSTALLED) compiler ## Time one layer and append a line to docs/performance/history.jsonl
	$(TIMED) $(BIN)/python -m modes_fx.bench.history --out docs/performance/history.jsonl

lint: $(INSTALLED) types ## Check style (ruff) and types (mypy)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy knows nothing of setup.py's folder mapping, so it reads the package through links.
types: $(INSTALLED)
	@rm -rf build/types && mkdir -p build/types/modes_fx
	@ln -s $(CURDIR)/modes_fx/* $(addprefix $(CURDIR)/,$(FOLDERS)) build/types/modes_fx
	cd build/types && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml \
		--cache-dir ../../.mypy_cache

clean: ## Remove .venv, caches and outputs
	rm -rf $(VENV) build dist out *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
		echo "MoDES-FX needs Python 3.11 to 3.13, but '$(PYTHON)' is not one:" \
			"install one and name it, as in 'make $(or $(MAKECMDGOALS),venv) PYTHON=python3.11'"; \
		exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { \
		echo "$(PYTHON) cannot make a virtual environment:" \
			"install its venv module (Debian, Ubuntu: apt install python3-venv)"; \
		exit 1; }
	$(BIN)/pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable '.[dev]'
	@touch $@

# torch.compile writes C++ for a CPU and builds it against the headers of Python.
compiler: $(INSTALLED)
	@command -v $(CXX) > /dev/null || { \
		echo "torch.compile needs a C++ compiler, and there is no '$(CXX)': install it" \
			"(Debian, Ubuntu: apt install g++) or name another, as in 'make demo CXX=clang++'"; \
		exit 1; }
	@$(BIN)/python -c 'import os, sysconfig as s, sys; \
		sys.exit(not os.path.exists(os.path.join(s.get_path("include"), "Python.h")))' || { \
		echo "torch.compile needs the headers of Python and found none:" \
			"install them (Debian, Ubuntu: apt install python3-dev)"; \
		exit 1; }
