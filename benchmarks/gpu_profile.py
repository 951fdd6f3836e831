"""`python -m benchmarks.gpu_profile --out DIR --seconds 480`: the profiles and the training run, most important first.

Each part is a process of its own, so that one that fails leaves the others alone; each saves its record as it goes.
Which parts ran, how they ended and how long they took stands in `gpu_profile.json`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure.record import ROOT, facts, save

FEWEST_SECONDS = 25  # less is not enough to start a part


@dataclass(frozen=True)
class Part:
    """A command and about how long it may take."""

    name: str
    module: str
    seconds: float
    arguments: tuple[str, ...]


def parts(smoke: bool) -> tuple[Part, ...]:
    """What runs; with `smoke`, the same on shapes for a CPU."""
    fusion, run = "benchmarks.profile_fusion", "benchmarks.train_run"
    small = ("--model", "tiny", "--layers", "2", "--prompt", "24", "--answer", "8", "--rounds", "3")
    if smoke:
        pivot = ("--pivot", "16", "--batch", "2", "--new-tokens", "3", "--lengths", "8,16")
        return (
            Part("profile-tiny", fusion, 120, (*small, *pivot, "--section", "train,infer,curve")),
            Part("train-run", run, 60, ("--model", "tiny", "--layers", "2", "--prompt", "24", "--steps", "4")),
        )
    batch = ("--batch", "8", "--prompt", "512", "--answer", "128", "--pivot", "512")
    lengths = ("--lengths", "64,256,1024,4096")
    large = ("--batch", "2", "--optimizer", "sgd", "--rounds", "8", "--new-tokens", "17")
    return (
        Part("profile-1b", fusion, 90, ("--model", "1b", *batch, *lengths, "--section", "train,infer,curve")),
        Part(
            "train-run-1b",
            run,
            75,
            (
                "--model",
                "1b",
            ),
        ),
        Part("profile-8b", fusion, 90, ("--model", "8b", *large, "--section", "train,infer")),
        Part("static-1b", fusion, 100, ("--model", "1b", "--section", "static", "--new-tokens", "33")),
        Part("compiled-1b", fusion, 100, ("--model", "1b", *batch, "--mode", "all", "--section", "train")),
        Part("static-8b", fusion, 150, ("--model", "8b", "--section", "static", "--new-tokens", "33", "--rounds", "6")),
    )


def run_part(part: Part, out: Path, seconds: float) -> dict[str, Any]:
    """Run one part for at most about `seconds`; how it ended."""
    soft = min(part.seconds, seconds - 10)
    command = [sys.executable, "-m", part.module, *part.arguments]
    command += ["--seconds", f"{soft:.0f}", "--out", str(out / f"{part.name}.json")]
    if part.module.endswith("profile_fusion"):
        command += ["--plots", str(out / "plots" / part.name)]
    print(f"=== {part.name}: {' '.join(command[1:])}", flush=True)
    started = time.monotonic()
    try:
        code: int | None = subprocess.run(command, cwd=ROOT, timeout=min(seconds, 1.6 * part.seconds + 30)).returncode
    except subprocess.TimeoutExpired:
        code = None
    took = time.monotonic() - started
    print(f"=== {part.name}: {'stopped' if code is None else f'ended with {code}'} after {took:.0f} s", flush=True)
    return {"command": command[1:], "returncode": code, "seconds": took}


def main(argv: list[str] | None = None) -> int:
    """Run the parts for which there is time; 1 when one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_profile", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the records are written")
    parser.add_argument("--seconds", type=float, default=480, help="for everything; %(default)s")
    parser.add_argument("--only", nargs="+", metavar="PART", help="names of parts; all")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on the CPU too: checks this program only")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available() and not arguments.smoke:
        parser.error("expected a GPU that torch can use, found none (--smoke runs without one)")
    known = parts(arguments.smoke)
    unknown = set(arguments.only or ()) - {part.name for part in known}
    if unknown:
        parser.error(f"--only: expected names of {[part.name for part in known]}, got {sorted(unknown)}")
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    record: dict[str, Any] = {
        "kind": "gpu_profile",
        "facts": facts(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "parts": {},
    }
    for part in known:
        if arguments.only and part.name not in arguments.only:
            continue
        left = arguments.seconds - (time.monotonic() - started)
        record["parts"][part.name] = (
            run_part(part, out, left) if left > FEWEST_SECONDS else {"left out": "no time left"}
        )
        save(out / "gpu_profile.json", record)
    return int(any(part.get("returncode", 0) != 0 for part in record["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
