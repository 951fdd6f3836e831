"""`python -m benchmarks.jobs.kernel_tests tests/kernels --out FILE`: kernel tests, golden vectors or models, on a GPU.

The record is saved as tests end, so that a run that is stopped has told what failed until then.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.measure.record import ROOT, facts, save
from benchmarks.measure.sources import contents

# By folder, the part that its record is of, and a file that is enough to check this program.
PARTS = {
    "tests/golden": ("golden", "test_golden.py"),
    "tests/kernels": ("tests", "test_backend.py"),
    "tests/model": ("model-tests", "test_pivot_graph_on_gpu.py"),
}
# Of tests/model only what a GPU runs otherwise than a CPU.
FILES = {
    "tests/model": (
        "test_pivot_graph_on_gpu.py",
        "fast_paths/test_whole_block.py",
        "fast_paths/test_few_tokens.py",
    )
}
# What needs no GPU and takes long: compiling ahead of time, the interpreter, programs, pure functions; and a candidate
# that has not run on a GPU yet, each of whose tests compiles for 10 s.
WITHOUT_GPU = (
    "tests/kernels/test_aot.py",
    "tests/kernels/test_floors.py",
    "tests/kernels/test_gate_up_matmul.py",
    "tests/kernels/test_op_benchmarks.py",
    "tests/kernels/test_interpreted.py",
    "tests/kernels/test_stream_config.py",
    "tests/golden/test_golden_interpreted.py",
)
MOST_FAILURES = 200  # that are kept with their message
_SAVED_EVERY = 2.0  # seconds


class Outcomes:
    """A pytest plugin that counts, keeps why tests failed, and ends the session when its time is up."""

    def __init__(self, part: str, out: Path | None, seconds: float) -> None:
        self.out = out
        self.started = self.saved = time.monotonic()
        self.deadline = self.started + seconds
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.record: dict[str, Any] = {
            "kind": "tests",
            "facts": facts(device),
            "content": contents([part]),
            **dict.fromkeys(("passed", "failed", "errors", "skipped"), 0),
            "failures": [],
            "stopped": True,
        }

    def pytest_runtest_logreport(self, report: Any) -> None:
        """One phase of one test has ended; with several processes, in any of them."""
        if report.when == "call" or report.outcome != "passed":
            name = report.outcome
            if name == "failed" and report.when != "call":
                name = "errors"
            self.record[name] += 1
        if report.outcome == "failed" and len(self.record["failures"]) < MOST_FAILURES:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = crash.message if crash is not None else str(report.longrepr)
            self.record["failures"].append(f"{report.nodeid}: {' '.join(why.split())[:300]}")
        if time.monotonic() - self.saved > _SAVED_EVERY:
            self.save()

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str, location: Any) -> None:
        """No further test starts after the deadline."""
        if time.monotonic() > self.deadline:
            raise pytest.exit.Exception("no time left", returncode=pytest.ExitCode.INTERRUPTED)

    def save(self) -> None:
        """Write the record as it is."""
        self.saved = time.monotonic()
        self.record["seconds"] = self.saved - self.started
        if self.out is not None:
            save(self.out, self.record)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.jobs.kernel_tests", description=__doc__)
    made.add_argument("path", choices=PARTS, help="folder of tests")
    made.add_argument("--out", type=Path, metavar="FILE", help="the record, as JSON")
    made.add_argument("--seconds", type=float, default=float("inf"), help="no test starts after; no limit")
    made.add_argument("--processes", type=int, default=8, help="%(default)s")
    made.add_argument("--smoke", action="store_true", help="a few tests: checks this program only")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run them; the exit status of pytest, which is not 0 where the time was up before all had run."""
    arguments = parser().parse_args(argv)
    command = ["-p", "no:cacheprovider", "-q", "--tb=short", "-rN", f"--rootdir={ROOT}", f"--confcutdir={ROOT}"]
    if find_spec("xdist") is not None and not arguments.smoke:
        command += ["--numprocesses", str(min(arguments.processes, os.cpu_count() or 1)), "--dist", "worksteal"]
    command += [f"--ignore={ROOT / name}" for name in WITHOUT_GPU]
    part, one_file = PARTS[arguments.path]
    files = (one_file,) if arguments.smoke else FILES.get(arguments.path, ("",))
    outcomes = Outcomes(part, arguments.out, arguments.seconds)
    code = int(pytest.main([*command, *(str(ROOT / arguments.path / name) for name in files)], plugins=[outcomes]))
    outcomes.record["stopped"] = code == pytest.ExitCode.INTERRUPTED
    outcomes.save()
    counts = {name: outcomes.record[name] for name in ("passed", "failed", "errors", "skipped")}
    print(counts, *outcomes.record["failures"], sep="\n", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
