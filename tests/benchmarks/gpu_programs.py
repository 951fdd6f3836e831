"""Jobs for tests of the GPU command: a program that does as it is told, and the command's options."""

from __future__ import annotations

from benchmarks import gpu
from benchmarks.jobs.listing import Job

PROGRAM = """
import json, sys, time
from pathlib import Path

def main(argv):
    what, *rest = argv
    print("doing", what, flush=True)
    if what == "record":
        Path(rest[0]).write_text(json.dumps({"kind": "train_run", "facts": {}}))
    if what == "sleep":
        Path(rest[0]).write_text(json.dumps({"kind": "train_run", "facts": {}, "partial": True}))
        time.sleep(60)
    if what == "raise":
        raise RuntimeError("broken")
    if what == "exit":
        raise SystemExit("said why")
    return int(rest[-1]) if what == "status" else 0
"""


def job(name, command, seconds=30, **of):
    return Job(name, f"what {name} is", seconds, ("fit",), command, command, timed=False, **of)


def arguments(tmp_path, *more):
    return gpu.parser().parse_args(["--out", str(tmp_path / "out"), *more])
