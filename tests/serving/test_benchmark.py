"""`python -m benchmarks.serve`, so small that its numbers mean nothing: both engines, and the same tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")

SMALL = ["--model", "tiny", "--layers", "2", "--requests", "6", "--tokens", "4", "--prompts", "8", "40", "--batch", "4"]


@pytest.mark.long
def test_it_measures(tmp_path):
    out = tmp_path / "serve.json"
    command = [sys.executable, "-m", "benchmarks.serve", *SMALL, "--rounds", "3", "--out", str(out)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(out.read_text())
    assert record["equal"] == {"plain": 6, "connected": 6, "differ": 6}
    assert all(row["first_token"]["median"] > 0 for row in record["ways"].values())
