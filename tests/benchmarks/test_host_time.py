"""The host's time of a call, measured without a GPU: everything happens but the launch."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
import torch

from benchmarks import host_time
from benchmarks.measure import decoding, dry
from benchmarks.show.goals import GOALS
from benchmarks.show.kinds import kind_of, read
from cc_kernels import backend, launch
from cc_kernels.launch import launching


@pytest.mark.skipif(not launch.HAS_TRITON or launch.INTERPRETED, reason="needs triton, not interpreted")
def test_dry_run_stops_before_the_launch(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(host_time, "CALLS", 3)
    monkeypatch.setattr(host_time, "ROUNDS", 1)
    monkeypatch.setattr(host_time, "host_rows", lambda depths, device: [])
    before = launching.DIRECT, launching.through_triton, backend.triton_serves
    assert host_time.main(["--dry", "--out", str(tmp_path)]) == 0
    assert (launching.DIRECT, launching.through_triton, backend.triton_serves) == before
    assert not any(launching._caches)  # a plan that starts nothing must not serve a later call
    record = json.loads((tmp_path / "host_time.json").read_text())
    assert record["dry"]
    ours = {row["op"] for row in record["rows"] if row["implementation"] == "cc_kernels"}
    assert ours == {row["op"] for row in record["rows"] if row["implementation"] == "eager"}
    assert {"swiglu", "swiglu forward+backward", "connect", "add_rows in place", "capture_add_rows_"} <= ours
    assert "swiglu" in capsys.readouterr().out


def test_dry_run_calls_our_kernels_only_where_it_says_so():
    with dry.without_launches():
        assert {"cpu"} == launching.DIRECT
    assert "cpu" not in launching.DIRECT


@pytest.mark.skipif(not launch.HAS_TRITON or launch.INTERPRETED, reason="needs triton, not interpreted")
def test_dry_forwards_run_what_a_gpu_would_run():
    """Blocks as one function, and replays of the pivot pass: each asks for a GPU through a name that is replaced."""
    device = torch.device("cpu")
    with dry.without_launches():
        forwards = host_time._forwards(2, device)
        for _ in range(2):
            forwards["cc_model, pivot graph"]()
        counted = decoding.python_calls(forwards["cc_model, pivot graph"])
        both = decoding.python_calls(forwards["cc_model"])
        attention = [sum(n for file, n in calls.items() if "sdpa_attention" in file) for calls in (counted, both)]
        assert attention[0] == attention[1] / 2 > 0
        assert sum(n for file, n in counted.items() if file.endswith("whole_block.py")) == 4  # forward and product


def test_dry_run_needs_triton(monkeypatch, capsys):
    monkeypatch.setattr(host_time, "HAS_TRITON", False)
    with pytest.raises(SystemExit):
        host_time.main(["--dry"])
    assert "--dry: expected triton to be installed" in capsys.readouterr().err


@pytest.mark.skipif(not launch.HAS_TRITON or launch.INTERPRETED, reason="needs triton, not interpreted")
def test_training_forwards_per_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(host_time, "FORWARDS", 1)
    monkeypatch.setattr(host_time, "FORWARD_ROUNDS", 2)
    assert host_time.main(["--dry", "--layers", "2", "--out", str(tmp_path)]) == 0
    rows = {row["implementation"]: row for row in json.loads((tmp_path / "host_time.json").read_text())["rows"]}
    assert set(rows) == {"two stock", "hooks", "cc_model", "cc_model, pivot graph"}
    for row in rows.values():
        assert row["us_per_layer_beyond_two_stock"] == pytest.approx((row["us"] - rows["two stock"]["us"]) / 2)


@pytest.mark.skipif(not launch.HAS_TRITON or launch.INTERPRETED, reason="needs triton, not interpreted")
@pytest.mark.parametrize("dry", [False, True])
def test_generate(tmp_path, monkeypatch, dry, capsys):
    """Both figures of the goals, in the record, its table and its numbers."""
    monkeypatch.setattr(decoding, "ROUNDS", 3)
    monkeypatch.setattr(decoding, "STEPS", 2)
    assert host_time.main([*(["--dry"] if dry else []), "--generate", "2", "--out", str(tmp_path)]) == 0
    ((name, record),) = read(tmp_path / "host_time.json").items()
    assert name == "host_time"
    assert set(record["content"]) == {"decoding"}
    stock, ours = record["rows"]
    assert (stock["implementation"], ours["implementation"]) == ("stock", "cc_model")
    assert stock["added_steps"]["median"] == 0
    assert stock["step_ratio"]["median"] == 1
    (table,) = kind_of(record).tables(record)
    assert table.part == "decoding"
    assert [row[:2] for row in table.rows] == [["2", "stock"], ["2", "ours"]]
    numbers = {number.name: number.value for number in kind_of(record).numbers(record)}
    how = ", dry" if dry else ""
    assert numbers[f"generate, 2 layers, cc_model{how}, added_steps"] == ours["added_steps"]["median"]
    assert numbers[f"generate, 2 layers, cc_model{how}, step_ratio"] == ours["step_ratio"]["median"]
    assert "steps added" in capsys.readouterr().out


def test_goals_read_the_names_of_the_record():
    pairs = [pair for goal in GOALS if "decode step" in goal.what and goal.on == "cpu" for pair in goal.pairs]
    assert [name for name, _ in pairs] == [
        "generate, 24 layers, cc_model, dry, added_steps",
        "generate, 24 layers, cc_model, dry, step_ratio",
    ]


LAYERS = 6
PER_LAYER = {"torch": 8, "kernels": 1}  # calls of Python functions that a decode step has beyond a stock one
PER_STEP = 34
STEPS, PER_PROMPT = 1.5, 170  # and that the first token has beyond the stock model's: stock decode steps, and a rest


@pytest.mark.parametrize("by", PER_LAYER)
def test_python_calls_of_a_decode_step(by):
    """Counted, so that nothing flakes: a call that is added to every layer, or to every step, shows here.

    By kernels, as on a GPU, gate, up and SwiGLU are one call.
    """
    if by == "kernels" and (not launch.HAS_TRITON or launch.INTERPRETED):
        pytest.skip("needs triton, not interpreted")
    steps = 4

    def counted(layers):
        models = decoding.tiny_pair(layers, torch.device("cpu"))
        return [decoding.calls_per_step(models[way], steps).total() / steps for way in decoding.WAYS]

    with dry.without_launches() if by == "kernels" else nullcontext():
        (stock, ours), more = counted(LAYERS), counted(2 * LAYERS)
    assert stock > 80 * LAYERS
    assert ours - stock <= PER_LAYER[by] * LAYERS + PER_STEP
    assert (more[1] - more[0]) - (ours - stock) <= PER_LAYER[by] * LAYERS


@pytest.mark.parametrize("layers", [LAYERS, 3 * LAYERS])
def test_python_calls_to_the_first_token(layers):
    models = decoding.tiny_pair(layers, torch.device("cpu"))
    step = decoding.calls_per_step(models["stock"], 4).total() / 4
    first = []
    for way in decoding.WAYS:
        call = decoding.generating(models[way], 1)
        call()
        first.append(decoding.python_calls(call).total())
    assert step < first[1] - first[0] <= STEPS * step + PER_PROMPT


def test_counting_of_python_calls():
    def inner():
        return 1

    found = decoding.python_calls(lambda: [inner(), len([]), inner()])
    assert found == {__file__: 3}


@pytest.mark.parametrize(("option", "values"), [("--generate", [0]), ("--layers", [-1]), ("--layers", [2, 0])])
def test_depths_that_no_model_has(capsys, option, values):
    with pytest.raises(SystemExit):
        host_time.main([option, *map(str, values)])
    assert f"error: {option}: expected numbers of layers above 0, got {values}" in capsys.readouterr().err
