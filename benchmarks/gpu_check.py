"""`python -m benchmarks.gpu_check --out DIR`: everything about the kernels that only a GPU can show, in one command.

Sections, each saved as it ends: the device; the golden vectors and the kernel tests, compiled; the bandwidth of a
copy; each op and its baselines. A section that fails is recorded and the next one runs. After `--seconds` no further
case starts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure.record import facts
from benchmarks.measure.timing import copy_bandwidth
from benchmarks.ops.cases import Case, measure

ROOT = Path(__file__).parents[1]
OPS = ("connect", "transform_rows", "gate_up_swiglu", "swiglu", "capture_rows", "add_rows", "gate_up_matmul")
TEST_SECONDS = 240
TEST_PROCESSES = 14
MOST_FAILURES = 30  # more would take the time of the measurements and say little that is new
# What these test needs no GPU, and takes long: compiling ahead of time, the interpreter, this program.
WITHOUT_GPU = ("test_aot.py", "test_floors.py", "test_gpu_check.py", "test_interpreted.py", "test_matrix_config.py")
GOLDEN = "tests/golden/test_golden.py"  # the published numbers, on the GPU
TOTAL_SECONDS = 430


def _run_tests(seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", GOLDEN, "tests/kernels", "-p", "no:cacheprovider", "-rs", "--tb=short"]
    if find_spec("xdist") is not None:  # most of the time goes into compiling kernels, on the CPU
        command += ["--numprocesses", str(min(TEST_PROCESSES, os.cpu_count() or 1)), "--dist", "worksteal"]
    command += ["--maxfail", str(MOST_FAILURES)]
    command += [f"--ignore=tests/kernels/{name}" for name in WITHOUT_GPU]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        so_far = (error.stdout or b"").decode(errors="replace")
        return {"returncode": None, "tail": f"{so_far[-20000:]}\nstopped after {error.timeout} s"}
    counts = re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout.splitlines()[-1])
    failed = re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.MULTILINE)
    failed += re.findall(r"^E  .*", done.stdout, re.MULTILINE)[:200]
    result: dict[str, Any] = {"returncode": done.returncode, **{name: int(number) for number, name in counts}}
    return {**result, "failures": failed, "tail": done.stdout[-20000:]}


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where gpu_check.json is written")
    parser.add_argument("--ops", nargs="+", default=OPS, choices=OPS, metavar="OP", help="which are measured")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="no case starts after; %(default)s")
    parser.add_argument("--test-seconds", type=float, default=TEST_SECONDS, help="for the tests; %(default)s")
    parser.add_argument("--skip-tests", action="store_true", help="leave the kernel tests out")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on the CPU too: checks this program only")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available() and not arguments.smoke:
        parser.error("expected a GPU that torch can use, found none (--smoke runs without one)")
    return arguments


def _print_rows(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if "refused" in row:
            print(f"  {row['case']:<52} {row['implementation']:<32} REFUSED {row['refused']}", flush=True)
            continue
        on_device = f"{'no device time':>27}"
        if "device_us" in row:
            kind = "read" if "share_of_read" in row else "copy"
            on_device = f"{row['device_us']['median']:>9.2f} us {row[f'share_of_{kind}']:>6.0%} of {kind}"
        print(
            f"  {row['case']:<52} {row['implementation']:<32} {on_device}   eager {row['eager_us']['median']:>9.2f} us",
            flush=True,
        )


class Check:
    """The report, written to disk after each section, and the time that is left."""

    def __init__(self, out: Path, limit: float) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / "gpu_check.json"
        self.sections: dict[str, Any] = {}
        self.started = time.monotonic()
        self.limit = limit

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def section(self, name: str, work: Callable[[], Any]) -> Any:
        """Run `work`, keep what it returns or how it failed, and save."""
        print(f"[{self.seconds():5.0f} s] {name}", flush=True)
        try:
            self.sections[name] = work()
        except Exception as error:  # recorded, so that the other sections still run
            self.sections[name] = {"error": f"{type(error).__name__}: {error}"}
        self.path.write_text(json.dumps({"sections": self.sections}, indent=1) + "\n")
        return self.sections[name]

    def measure(self, cases: Iterator[Case], device: torch.device, bandwidth: float) -> list[dict[str, Any]]:
        """The rows of all cases for which there is time."""
        rows: list[dict[str, Any]] = []
        for case in cases:
            if self.seconds() > self.limit:
                rows.append({"case": case.name, "implementation": "all", "left out": "no time left"})
                continue
            some = list(measure(case, device, bandwidth))
            _print_rows(some)
            rows += some
        return rows


def main(argv: list[str] | None = None) -> int:
    """Run all sections; 1 when a test failed or one of our own implementations was refused."""
    arguments = _arguments(argv)
    device = torch.device("cpu") if not torch.cuda.is_available() else torch.device("cuda", 0)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    check = Check(arguments.out, arguments.seconds)
    check.section("device", lambda: facts(device))
    if not (arguments.skip_tests or arguments.smoke):
        tests = check.section("tests", lambda: _run_tests(arguments.test_seconds))
        print({name: value for name, value in tests.items() if name != "tail"}, flush=True)
    bandwidth = check.section("copy", lambda: copy_bandwidth(device, 2**16 if arguments.smoke else 2**30))
    for op in arguments.ops:
        cases = import_module(f"benchmarks.ops.{op}").cases(device, dtype, arguments.smoke)
        check.section(op, partial(check.measure, cases, device, bandwidth))
    return int(_failed(check.sections))


def _failed(sections: dict[str, Any]) -> bool:
    if any(isinstance(content, dict) and "error" in content for content in sections.values()):
        return True
    if sections.get("tests", {}).get("returncode", 0) != 0:
        return True
    rows = [row for name in OPS for row in sections.get(name, []) if isinstance(row, dict)]
    return any("refused" in row and row["implementation"] == "cc_kernels" for row in rows)


if __name__ == "__main__":
    raise SystemExit(main())
