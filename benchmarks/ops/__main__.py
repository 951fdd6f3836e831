"""`python -m benchmarks.ops OP… --out FILE`: each op beside its baselines, on the device and called eagerly.

Every implementation is compared with the reference first and refused where it differs. The record is saved after each
case; after `--seconds` no further case starts, and those that are left are named in it.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure.record import facts, save
from benchmarks.measure.sources import contents
from benchmarks.measure.timing import copy_bandwidth
from benchmarks.ops import cases

OPS = (
    "connect",
    "transform_rows",
    "gate_up_swiglu",
    "swiglu",
    "geglu",
    "capture_rows",
    "add_rows",
    "capture_add_rows",
    "gate_up_matmul",
)
_COPIED = 2**30  # bytes, far more than an L2 cache


def _print_row(row: dict[str, Any]) -> None:
    said = row.get("refused") and f"REFUSED {row['refused']}"
    if said is None:
        eager = f"eager {row['eager_us']['median']:>9.2f} us"
        said = f"{row['device_us']['median']:>9.2f} us, {eager}" if "device_us" in row else eager
    print(f"  {row['case']:<52} {row['implementation']:<32} {said}", flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.ops", description=__doc__)
    made.add_argument("ops", nargs="+", choices=OPS, metavar="OP", help=f"of {', '.join(OPS)}")
    made.add_argument("--out", type=Path, metavar="FILE", help="the record, as JSON")
    made.add_argument("--seconds", type=float, default=float("inf"), help="no case starts after; no limit")
    made.add_argument("--smoke", action="store_true", help="tiny shapes, on a CPU too: checks this program only")
    return made


def main(argv: list[str] | None = None) -> int:
    """Measure and save; 1 when one of our own implementations was refused."""
    command = parser()
    arguments = command.parse_args(argv)
    if not (torch.cuda.is_available() or arguments.smoke):
        command.error("expected a GPU that torch can use, found none (--smoke runs without one)")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    cases.COMPILES = not arguments.smoke
    started = time.monotonic()
    bandwidth = copy_bandwidth(device, 2**16 if arguments.smoke else _COPIED)
    rows: dict[str, list[dict[str, Any]]] = {op: [] for op in arguments.ops}
    record = {
        "kind": "ops",
        "smoke": arguments.smoke,
        "facts": facts(device),
        "content": contents(arguments.ops),
        "copy": bandwidth,
        "ops": rows,
    }
    for op in arguments.ops:
        print(f"[{time.monotonic() - started:5.0f} s] {op}", flush=True)
        for case in import_module(f"benchmarks.ops.{op}").cases(device, dtype, arguments.smoke):
            if time.monotonic() - started > arguments.seconds:
                rows[op].append({"case": case.name, "implementation": "all", "left out": "no time left"})
                continue
            for row in cases.measure(case, device, bandwidth):
                _print_row(row)
                rows[op].append(row)
            if arguments.out is not None:
                save(arguments.out, record)
    if arguments.out is not None:
        save(arguments.out, record)
    measured = [row for some in rows.values() for row in some]
    return int(any("refused" in row and row["implementation"] == "cc_kernels" for row in measured))


if __name__ == "__main__":
    sys.exit(main())
