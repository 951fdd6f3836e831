"""`python -m benchmarks.jobs.experiment CONFIG --out FILE`: `train.experiment` with a record of what has ended.

All other options are those of `train.experiment`. `--seconds` is when the last of its jobs should have ended; when the
process is told to stop, the record still has every job that ended before.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure.record import ROOT, facts, save
from benchmarks.measure.sources import contents
from train.experiment import __main__ as experiment
from train.experiment.pool import read_results

STARTS_FOR = 0.6  # of the seconds: a job that starts later would not end in time


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.jobs.experiment", description=__doc__)
    made.add_argument("config", help="YAML file")
    made.add_argument("--out", type=Path, metavar="FILE", required=True, help="the record, as JSON")
    made.add_argument("--seconds", type=float, default=float("inf"), help="for all jobs; no limit")
    return made


def _stop(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def main(argv: list[str] | None = None) -> int:
    """Run what there is time for; the record is written in any case."""
    arguments, others = parser().parse_known_args(argv)
    signal.signal(signal.SIGTERM, _stop)
    if arguments.seconds != float("inf"):
        others += ["--stop-after", f"{STARTS_FOR * arguments.seconds:.0f}"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            experiment.main([str(ROOT / arguments.config), "--out", folder, *others])
        finally:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            record: dict[str, Any] = {
                "kind": "experiment",
                "facts": facts(device),
                "content": contents(["experiment"]),
                "config": arguments.config,
                "results": read_results(folder),
            }
            save(arguments.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
