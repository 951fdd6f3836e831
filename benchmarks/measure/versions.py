"""Which versions the tests held with: a record to which a run of the tests adds itself.

`pytest --record-versions=benchmarks/results/versions.json` does so when no test failed; `python -m benchmarks.document`
writes the table into the README. A run replaces an earlier one of the same tests, versions and device.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure.record import facts, save

KIND = "versions"
SAME = ("device", "torch", "triton", "transformers", "tests")


def add_run(path: Path, tests: Sequence[str], passed: int, skipped: int) -> dict[str, Any]:
    """Add this process's run of the tests to the record at `path`, which is made when missing; returns the run.

    Args:
        path: the record.
        tests: what was run, as pytest was told.
        passed: number of tests that passed.
        skipped: number of tests that were skipped.
    """
    found = facts(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    run = {name: found[name] for name in SAME[:-1]} | {
        "device": found["device"].partition(",")[0],
        "tests": " ".join(sorted(tests)),
        "passed": passed,
        "skipped": skipped,
        "source": f"recorded by the run, commit {found['commit']}",
    }
    kept = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else []
    kept = [other for other in kept if any(other[name] != run[name] for name in SAME)]
    save(path, {"kind": KIND, "runs": [*kept, run]})
    return run
