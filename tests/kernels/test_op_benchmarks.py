"""The benchmarks of ops and the tuner, on shapes so small that a CPU runs them; their numbers mean nothing there."""

import json
from importlib import import_module

import pytest
import torch
from kernel_harness import DEVICE, INTERPRETED, needs_triton

from benchmarks import tune
from benchmarks.measure import timing
from benchmarks.measure.sources import content
from benchmarks.ops import __main__ as program
from benchmarks.ops import cases, connect, gate_up_swiglu, swiglu
from benchmarks.ops.cases import Case, measure
from cc_kernels import use_backend
from cc_kernels.aot.floors import Cost


@pytest.fixture
def uncompiled(monkeypatch):
    """Compiling takes half a minute on a CPU; the program switches it off in a smoke test, for its process."""
    monkeypatch.setattr(cases, "COMPILES", False)


@pytest.mark.skipif(INTERPRETED, reason="runs once, in the process that is not interpreted")
def test_smoke(tmp_path, uncompiled):
    out = tmp_path / "ops.json"
    assert program.main([*program.OPS, "--out", str(out), "--smoke"]) == 0
    record = json.loads(out.read_text())
    assert record["smoke"] is True
    assert record["content"] == {op: content(op) for op in program.OPS}
    assert list(record["ops"]) == list(program.OPS)
    for rows in record["ops"].values():
        assert rows
        assert all("eager_us" in row for row in rows)
        assert all("device_us" in row for row in rows if row["implementation"] != "published")


@pytest.mark.skipif(INTERPRETED, reason="runs once, in the process that is not interpreted")
def test_cases_that_there_is_no_time_for_are_named(tmp_path, uncompiled):
    out = tmp_path / "ops.json"
    assert program.main(["swiglu", "--out", str(out), "--smoke", "--seconds", "-1"]) == 0
    rows = json.loads(out.read_text())["ops"]["swiglu"]
    assert len(rows) == 4
    assert all(row["left out"] == "no time left" for row in rows)


@pytest.mark.skipif(INTERPRETED, reason="runs once, in the process that is not interpreted")
def test_an_op_of_ours_that_is_wrong_is_a_failure(tmp_path, uncompiled, monkeypatch):
    monkeypatch.setattr(cases, "disagreement", lambda result, expected: "result 0 differs")
    assert program.main(["add_rows", "--smoke", "--out", str(tmp_path / "ops.json")]) == 1


@pytest.mark.skipif(DEVICE.type != "cpu", reason="this machine has a GPU")
def test_without_a_gpu(tmp_path, capsys):
    with pytest.raises(SystemExit):
        program.main(["swiglu", "--out", str(tmp_path / "ops.json")])
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
