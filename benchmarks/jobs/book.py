"""What is answered already, and the file that keeps how each job of a run ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.jobs.listing import JOBS, Job
from benchmarks.jobs.running import Ended
from benchmarks.measure.record import facts, save
from benchmarks.measure.sources import contents
from benchmarks.show.library import RESULTS

FILE = "gpu.json"  # all records in one file: what comes back from a machine may be a few files only
DONE, FAILED, STOPPED = "done", "failed", "stopped"
ANSWERED, LEFT_OUT, RUNNING = "answered", "left out", "running"


def answered(folder: Path = RESULTS) -> dict[str, str]:
    """The jobs that a run in `folder` has ended for the present content of the files that they depend on.

    Returns:
        By the job's name, the record's file and its commit.
    """
    found: dict[str, str] = {}
    parts = {job.name: contents(job.parts) for job in JOBS}
    for path in sorted(folder.rglob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(run, dict) or run.get("kind") != "gpu" or run.get("smoke"):
            continue
        for name, job in run["jobs"].items():
            if job["state"] == DONE and job.get("content") == parts.get(name):
                commit = job.get("record", {}).get("facts", {}).get("commit") or run["facts"].get("commit")
                found[name] = f"{path.relative_to(folder)}, commit {commit}"
    return found


class Book:
    """The record of one run: it is written whole whenever something ends, so that nothing that ended is lost."""

    def __init__(self, out: Path, smoke: bool) -> None:
        self.path = out / FILE
        self.jobs: dict[str, dict[str, Any]] = {}
        cpu = facts(torch.device("cpu"))  # what a device would say stands in each job's record
        self.record: dict[str, Any] = {"kind": "gpu", "smoke": smoke, "facts": cpu, "jobs": self.jobs}

    def note(self, job: Job, state: str, why: str = "") -> None:
        """Say how it stands with a job that has no record."""
        self.jobs[job.name] = {"state": state, "why": why}
        save(self.path, self.record)

    def repeat(self, job: Job, other: str) -> None:
        """A job whose miniature is that of another one ended as that did."""
        self.jobs[job.name] = {**self.jobs[other], "content": contents(job.parts), "why": f"the miniature of {other}"}
        save(self.path, self.record)

    def keep(self, job: Job, command: list[str], ended: Ended, folder: Path) -> str:
        """Keep how a job ended and what it recorded, also where it failed or was stopped; returns its state.

        A job that was stopped but has a record of a kind is no lost one: what it has stands in the run's file.
        """
        state = STOPPED if ended.status is None else DONE if ended.status == 0 else FAILED
        entry: dict[str, Any] = {"state": state, "seconds": ended.seconds, "command": command}
        entry["content"] = contents(job.parts)
        if state != DONE:
            entry |= {"status": ended.status, "why": ended.tail}
        record = _read(folder)
        if record is not None:
            entry["record"] = record
        elif state == DONE:
            entry |= {"state": FAILED, "why": f"ended without a record\n{ended.tail}"}
        self.jobs[job.name] = entry
        save(self.path, self.record)
        return str(entry["state"])


def _read(folder: Path) -> Any:
    """The record in a job's folder; None where there is none, or one that is no JSON."""
    for path in sorted(folder.glob("*.json")):
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
    return None
