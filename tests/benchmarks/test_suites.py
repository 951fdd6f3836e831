"""The pytest-benchmark suites: every op has one, wrong values are not timed, and the record explains its numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import cc_kernels
from benchmarks.measure.models import NAMES, shape_of
from benchmarks.ops import cases
from benchmarks.ops.cases import Case
from benchmarks.suites import runner
from cc_kernels.aot.floors import Cost

ROOT = Path(__file__).parents[2]
OPS = sorted(name.rstrip("_") for name in cc_kernels.__all__ if name not in ("capture_rows_through", "use_backend"))
CPU = torch.device("cpu")


def test_every_op_has_a_suite():
    suites = sorted(path.stem.removeprefix("test_") for path in (ROOT / "benchmarks" / "suites").glob("test_*.py"))
    assert suites == OPS


@pytest.mark.parametrize("op", OPS)
def test_every_registered_model_has_cases(op):
    """Forward for all, backward and both for those that are differentiable; made without a tensor of that size."""
    inference = op in ("transform_rows", "gate_up_swiglu", "capture_add_rows")
    for name in NAMES:
        made = [
            case.name for case in import_module(f"benchmarks.ops.{op}").model_cases(shape_of(name), CPU, torch.float32)
        ]
        assert len(set(made)) == len(made)
        for direction in () if inference else (" backward", "forward+backward"):
            assert any(direction in case for case in made), (op, name, direction)


def test_a_suite_runs_and_records(tmp_path):
    pytest.importorskip("pytest_benchmark")
    out = tmp_path / "ops.json"
    command = ["-m", "pytest", "benchmarks/suites/test_transform_rows.py", "-k", "not compile and 1x256"]
    options = ["-p", "no:cacheprovider", "-p", "no:xdist", f"--benchmark-json={out}"]
    # With the variables of an xdist worker, which this process may be, pytest-benchmark writes no record.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    call = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, *command, *options], **call)
    assert done.returncode == 0, done.stdout[-2000:]
    tests = {test["extra_info"]["implementation"]: test for test in json.loads(out.read_text())["benchmarks"]}
    assert {"cc_kernels", "eager", "published"} <= set(tests)
    extra = tests["eager"]["extra_info"]
    assert extra["bytes"] == (256 * 256 + 2 * 256) * 4
    assert extra["gb_per_s"] > 0
    assert extra["share_of_copy"] > 0
    assert extra["torch"] == torch.__version__
    assert extra["device"]
    assert tests["eager"]["stats"]["rounds"] == runner.ROUNDS


class Recorder:
    """Stands in for the `benchmark` fixture when it is disabled."""

    def __init__(self):
        self.extra_info = {}
        self.stats = None
        self.calls = 0

    def pedantic(self, call, rounds, warmup_rounds):
        call()
        self.calls += 1


def test_wrong_values_are_not_timed():
    implementations = {"right": torch.sin, "wrong": torch.cos}
    case = Case("sine", lambda seed: (torch.ones(4),), torch.sin, implementations, Cost(bytes=32, flops=4))
    right, wrong = Recorder(), Recorder()
    runner.run(right, runner.Entry(case, "right", "warm"))
    assert right.calls == 1
    assert right.extra_info["bytes"] == 32
    with pytest.raises(AssertionError, match="sine, wrong: result 0 differs by"):
        runner.run(wrong, runner.Entry(case, "wrong", "warm"))
    assert wrong.calls == 0


def test_entries_are_named(monkeypatch):
    def model_cases(model, device, dtype):
        yield Case(f"op {model.hidden}", lambda seed: (), torch.sin, {"a b": torch.sin}, Cost(1, 1), {"c": torch.sin})

    monkeypatch.setattr(runner, "DEVICE", torch.device("cuda"))
    assert [entry.id for entry in runner.entries(model_cases, ("tiny",))] == [
        "tiny-op_256-a_b-warm",
        "tiny-op_256-a_b-cold",
        "tiny-op_256-c-warm",
        "tiny-op_256-c-cold",
    ]


@pytest.mark.parametrize("op", OPS)
def test_baselines_agree(op, monkeypatch):
    """All implementations of the smallest model, uncompiled."""
    module = import_module(f"benchmarks.ops.{op}")
    monkeypatch.setattr(module, "compiled", lambda call: call)
    for case in module.model_cases(shape_of("tiny"), CPU, torch.float32):
        expected = case.reference(*case.inputs(0))
        for name, call in {**case.implementations, **case.eager_only}.items():
            assert cases.disagreement(call(*case.inputs(0)), expected) is None, (case.name, name)
