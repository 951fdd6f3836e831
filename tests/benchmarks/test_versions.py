"""The record of versions: a run adds itself when every test held, and replaces what it repeats."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from benchmarks.measure.versions import SAME, add_run
from benchmarks.show.kinds import kind_of

ROOT = Path(__file__).parents[2]


def test_a_run_replaces_the_one_that_it_repeats(tmp_path):
    path = tmp_path / "versions.json"
    other = dict.fromkeys(SAME, "other") | {"torch": "9.0", "passed": 1, "skipped": 0, "source": "elsewhere"}
    path.write_text(json.dumps({"kind": "versions", "runs": [other]}))
    for passed in (5, 6):
        add_run(path, ["tests/model", "tests/kernels"], passed, 2)
    add_run(path, ["tests/golden"], 3, 0)
    runs = json.loads(path.read_text())["runs"]
    assert runs[0] == other
    assert [(run["tests"], run["passed"], run["skipped"]) for run in runs[1:]] == [
        ("tests/kernels tests/model", 6, 2),
        ("tests/golden", 3, 0),
    ]
    assert runs[1]["torch"] == torch.__version__
    assert runs[1]["transformers"] == transformers.__version__
    record = {"kind": "versions", "runs": runs}
    (table,) = kind_of(record).tables(record)
    assert [row[0] for row in table.rows] == ["9.0", torch.__version__, torch.__version__]


@pytest.mark.parametrize("holds", [True, False])
def test_pytest_records_a_run_in_which_nothing_failed(holds, tmp_path):
    record = tmp_path / "versions.json"
    (tmp_path / "test_it.py").write_text(
        f"import pytest\n\ndef test_one():\n    assert {holds}\n\ndef test_two():\n    pass\n\n"
        "@pytest.mark.skip(reason='')\ndef test_three():\n    pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    options = ["--rootdir", str(ROOT), "--confcutdir", str(ROOT), f"--record-versions={record}"]
    done = subprocess.run(
        [*command, *options, "tests/benchmarks/test_versions.py::test_the_record_names_its_runs", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode == 0) == holds, done.stdout + done.stderr
    if holds:
        (run,) = json.loads(record.read_text())["runs"]
        assert (run["passed"], run["skipped"]) == (3, 1)
        assert "tests/benchmarks/test_versions.py" in run["tests"]
    else:
        assert not record.exists()
        assert "nothing recorded" in done.stdout


def test_the_record_names_its_runs():
    runs = json.loads((ROOT / "benchmarks" / "results" / "versions.json").read_text(encoding="utf-8"))["runs"]
    assert len({tuple(run[name] for name in SAME) for run in runs}) == len(runs)
    assert all(run["passed"] > 0 and run["source"] for run in runs)
