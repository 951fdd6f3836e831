"""The GPU check itself, on shapes so small that a CPU runs it; its numbers mean nothing there."""

import json
from importlib import import_module

import pytest
import torch
from kernel_harness import DEVICE, INTERPRETED, needs_triton

from benchmarks import gpu_check, tune
from benchmarks.measure import timing
from benchmarks.ops import cases, connect, gate_up_swiglu, swiglu
from benchmarks.ops.cases import Case, measure
from cc_kernels import use_backend
from cc_kernels.aot.floors import Cost


@pytest.mark.skipif(INTERPRETED, reason="runs once, in the process that is not interpreted")
def test_smoke(tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "compiled", lambda op: op)
    for op in gpu_check.OPS:
        module = import_module(f"benchmarks.ops.{op}")
        if hasattr(module, "compiled"):
            monkeypatch.setattr(module, "compiled", lambda op: op)  # compiling takes half a minute on a CPU
    assert gpu_check.main(["--out", str(tmp_path), "--smoke"]) == 0
    sections = json.loads((tmp_path / "gpu_check.json").read_text())["sections"]
    assert list(sections) == ["device", "copy", *gpu_check.OPS]
    for op in gpu_check.OPS:
        assert sections[op]
        assert all("eager_us" in row for row in sections[op])
        assert all("device_us" in row for row in sections[op] if row["implementation"] != "published")


@pytest.mark.skipif(DEVICE.type != "cpu", reason="this machine has a GPU")
def test_without_a_gpu(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(["--out", str(tmp_path)])
    assert "expected a GPU that torch can use, found none" in capsys.readouterr().err


def test_wrong_values_are_not_timed():
    implementations = {"right": torch.sin, "wrong": torch.cos, "broken": lambda x: x.missing}
    case = Case("sine", lambda seed: (torch.ones(4),), torch.sin, implementations, Cost(bytes=32, flops=4))
    right, wrong, broken = measure(case, torch.device("cpu"), 1e9)
    assert "device_us" in right
    assert "result 0 differs by" in wrong["refused"]
    assert "AttributeError" in broken["refused"]


@needs_triton
@pytest.mark.parametrize(
    ("module", "function"),
    [
        (swiglu, "swiglu_config"),
        (connect, "bank_config"),
        (connect, "mix_config"),
        (gate_up_swiglu, "gate_up_config"),
    ],
)
def test_tuner_times_right_candidates_and_changes_nothing(module, function, monkeypatch):
    knob = next(knob for knob in tune.KNOBS if knob.function == function)
    monkeypatch.setattr(module, "compiled", lambda op: op)
    monkeypatch.setattr(timing, "REPLAYS", 2)
    op_module = import_module(f"cc_kernels.ops.{knob.modules[0]}")
    heuristic = getattr(op_module, knob.function)
    forward, *others = module.cases(DEVICE, torch.float32, smoke=True)
    case = others[0] if function == "mix_config" else forward
    with use_backend("triton"):
        rows = tune.tune(knob, case, DEVICE)
    assert len(rows) > 5
    assert all("us" in row for row in rows)
    assert getattr(op_module, knob.function) is heuristic


@needs_triton
def test_tuner_leaves_out_cases_that_do_not_ask(monkeypatch):
    monkeypatch.setattr(connect, "compiled", lambda op: op)
    knob = next(knob for knob in tune.KNOBS if knob.function == "mix_config")
    with use_backend("triton"):
        assert tune.tune(knob, next(iter(connect.cases(DEVICE, torch.float32, smoke=True))), DEVICE) == []


def test_read_bandwidth_reads_everything():
    numbers = torch.arange(10_000, dtype=torch.int32, device=DEVICE)
    assert int(timing.read_once(numbers).sum()) == 10_000 * 9_999 // 2
    assert timing.read_bandwidth(DEVICE, 4096) > 0


@pytest.mark.skipif(INTERPRETED, reason="runs once, in the process that is not interpreted")
def test_unknown_knob(tmp_path, capsys):
    with pytest.raises(SystemExit):
        tune.main(["--out", str(tmp_path / "table.json"), "--knobs", "warp_size"])
    assert "--knobs: expected names of ['swiglu_config'" in capsys.readouterr().err
