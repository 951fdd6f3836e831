"""The host's time of a call, measured without a GPU: everything happens but the launch."""

from __future__ import annotations

import json

import pytest

from benchmarks import host_time
from cc_kernels import backend, launch


@pytest.mark.skipif(not launch.HAS_TRITON or launch.INTERPRETED, reason="needs triton, not interpreted")
def test_dry_run_stops_before_the_launch(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(host_time, "CALLS", 3)
    monkeypatch.setattr(host_time, "ROUNDS", 1)
    before = launch.DIRECT, launch._first_launch, launch._compiled, backend.triton_serves
    assert host_time.main(["--dry", "--out", str(tmp_path)]) == 0
    assert (launch.DIRECT, launch._first_launch, launch._compiled, backend.triton_serves) == before
    record = json.loads((tmp_path / "host_time.json").read_text())
    assert record["dry"]
    ours = {row["op"] for row in record["rows"] if row["implementation"] == "cc_kernels"}
    assert ours == {row["op"] for row in record["rows"] if row["implementation"] == "eager"}
    assert {"swiglu", "swiglu forward+backward", "connect", "add_rows in place"} <= ours
    assert "swiglu" in capsys.readouterr().out


def test_dry_run_calls_our_kernels_only_where_it_says_so():
    with host_time._without_launches():
        assert {"cpu"} == launch.DIRECT
    assert "cpu" not in launch.DIRECT


def test_dry_run_needs_triton(monkeypatch, capsys):
    monkeypatch.setattr(launch, "HAS_TRITON", False)
    with pytest.raises(SystemExit):
        host_time.main(["--dry"])
    assert "--dry: expected triton to be installed" in capsys.readouterr().err
