# Every target sets itself up: the first one that runs creates $(VENV) and installs what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# torch first and pinned: an unpinned torch would pull another build.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test bench check format clean
help:
	@echo "make demo    a model that reads English teaches a plain one, on real data (at most 6 minutes); writes runs/demo/report.md"
	@echo "make test    run the tests"
	@echo "make bench   time every op against its baselines (2 minutes on a CPU); writes runs/benchmarks"
	@echo "make check   ruff (lint and format) and mypy"
	@echo "make format  let ruff rewrite the files"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) --editable '.[train,dev]'
	touch $@

demo: $(READY)
	$(BIN)/python -m train.demo

# Two processes with one thread each: the models in the tests are too small to share between threads.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# rich and matplotlib come with the train extra.
bench: $(READY)
	mkdir -p runs/benchmarks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest benchmarks/suites --benchmark-json=runs/benchmarks/ops.json
	$(BIN)/python -m benchmarks.report runs/benchmarks/ops.json --out runs/benchmarks

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache runs
