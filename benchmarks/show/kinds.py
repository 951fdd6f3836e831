"""The registry: which kind a record is of, and how records of this kind are shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.show import (
    experiment,
    fit_matrix,
    gpu,
    host_time,
    ops,
    profile_fusion,
    serve,
    suites,
    tests,
    train_run,
    tune,
    versions,
)
from benchmarks.show.table import Kind, Record

KINDS: dict[str, Kind] = {
    "profile_fusion": profile_fusion.KIND,
    "train_run": train_run.KIND,
    "fit_matrix": fit_matrix.KIND,
    "ops": ops.KIND,
    "tests": tests.KIND,
    "host_time": host_time.KIND,
    "tune": tune.KIND,
    "suites": suites.KIND,
    "experiment": experiment.KIND,
    "gpu": gpu.KIND,
    "serve": serve.KIND,
    "versions": versions.KIND,
}


def kind_of(record: Record) -> Kind:
    """How a record is shown.

    Raises:
        ValueError: a record of no known kind.
    """
    if record.get("kind") not in KINDS:
        raise ValueError(f"record: expected a kind of {', '.join(KINDS)}, got {record.get('kind')!r}")
    return KINDS[record["kind"]]


def read(path: Path) -> dict[str, Record]:
    """The records in a file: by the name of its stem, and for a job inside `stem/job`; none in JSON of other origin.

    Raises:
        ValueError: not JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"results: expected JSON in {path}, got {error}") from error
    return {f"{path.stem}{suffix}": record for suffix, record in _inside(content)}


def _inside(content: Any) -> Iterator[tuple[str, Record]]:
    """The record of a file and those inside it, each with a kind. Files of earlier versions are read, too."""
    if isinstance(content, list) and content and isinstance(content[0], dict) and "knob" in content[0]:
        yield "", {"kind": "tune", "facts": {}, "rows": content}
    if not isinstance(content, dict):
        return
    if content.get("kind") in KINDS:
        yield "", content
        for name, job in content["jobs"].items() if content["kind"] == "gpu" else ():
            for suffix, record in _inside(job.get("record")):
                yield f"/{name}{suffix}", _of_job(record, job, content)
    elif "sections" in content:  # benchmarks.gpu_check, of which each section is a part
        sections, given = content["sections"], content.get("content", {})
        found = {name: rows for name, rows in sections.items() if isinstance(rows, list)}
        yield "", {"kind": "ops", "facts": sections["device"], "content": given, "ops": found}
        if "passed" in sections.get("tests", {}):
            yield "/tests", {"kind": "tests", "facts": sections["device"], "content": given, **sections["tests"]}
    elif "dry" in content or {"device", "rows"} <= content.keys():
        yield "", {"kind": "host_time", "facts": content["device"], **content}
    elif "benchmarks" in content and "machine_info" in content:
        facts = content["benchmarks"][0]["extra_info"] if content["benchmarks"] else {}
        commit = {"commit": content.get("commit_info", {}).get("id", "unknown")[:10]}
        yield "", {"kind": "suites", "facts": {**commit, **facts}, **content}


def _of_job(record: Record, job: Record, run: Record) -> Record:
    """A job's record with what stands around it: digests of its code, the commit's date, whether it is smoke."""
    return {
        **record,
        "facts": {"committed": run["facts"].get("committed"), **record["facts"]},
        "content": {**job.get("content", {}), **record.get("content", {})},
        "smoke": run.get("smoke", False),
    }


__all__ = ["KINDS", "Kind", "kind_of", "read"]
