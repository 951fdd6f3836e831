"""The host's time of a call, measured without a GPU: everything happens but the launch."""

from __future__ import annotations

import json

import pytest

from benchmarks import host_time
from cc_kernels import backend, launch
from cc_kernels.launch import launching


@pytest.mark.skipif(not launch.HAS_TRITON or launch.INTERPRETED, reason="needs triton, not interpreted")
def test_dry_run_stops_before_the_launch(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(host_time, "CALLS", 3)
    monkeypatch.setattr(host_time, "ROUNDS", 1)
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
    with host_time._without_launches():
        assert {"cpu"} == launching.DIRECT
    assert "cpu" not in launching.DIRECT


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
    assert set(rows) == {"two stock", "hooks", "cc_model"}
    for row in rows.values():
        assert row["us_per_layer_beyond_two_stock"] == pytest.approx((row["us"] - rows["two stock"]["us"]) / 2)
