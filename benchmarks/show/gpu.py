"""Records of `benchmarks.gpu`: how each job ended. What a job measured is a record of its own kind inside."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.show.table import Kind, Number, Record, Table


def tables(record: Record) -> Iterator[Table]:
    """One row per job."""
    rows = [
        [name, job["state"], f"{job['seconds']:.0f}" if "seconds" in job else "–", job.get("why", "")]
        for name, job in record["jobs"].items()
    ]
    yield Table("Jobs", ["job", "state", "seconds", "why"], rows, "gpu")


def numbers(record: Record) -> Iterator[Number]:
    """How long each job took, in seconds."""
    for name, job in record["jobs"].items():
        if "seconds" in job:
            yield Number(f"job {name}, seconds", job["seconds"], "gpu")


def failures(record: Record) -> list[str]:
    """Jobs that failed or were stopped, with the end of what they printed."""
    ended = {name: job for name, job in record["jobs"].items() if job["state"] in ("failed", "stopped")}
    return [f"job {name}: {job['state']}, {job.get('why', '')}".rstrip(", ") for name, job in ended.items()]


KIND = Kind(tables, numbers, failures=failures)
