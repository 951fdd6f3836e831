"""Which jobs a call has time for, by their estimates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.jobs.listing import JOBS, Job
from benchmarks.show.table import Table

CALLS = (7.0, 4.0)  # minutes: what fifteen minutes of a machine have room for, its starts included


def fitting(jobs: Iterable[Job], minutes: float) -> list[Job]:
    """The jobs that a call of so many minutes runs, in order: one for which too little is left is passed over.

    Example:
        >>> [job.name for job in fitting(JOBS, 0.5)][:1], fitting(JOBS, 0.05)
        (['golden'], [])
    """
    left, chosen = 60 * minutes, []
    for job in jobs:
        if left >= job.fewest_seconds:
            chosen.append(job)
            left -= min(job.seconds, left)
    return chosen


def calls_table(calls: Sequence[float] = CALLS) -> Table:
    """Every job, what it answers, its seconds, and which of some calls after one another has room for it."""
    waiting = list(JOBS)
    call_of: dict[str, str] = {}
    for number, minutes in enumerate(calls, 1):
        chosen = fitting(waiting, minutes)
        call_of |= {job.name: f"{number} ({minutes:g} minutes)" for job in chosen}
        waiting = [job for job in waiting if job not in chosen]
    rows = [
        [f"`{job.name}`", job.answers, str(job.seconds), call_of.get(job.name, "later"), ", ".join(job.parts)]
        for job in JOBS
    ]
    return Table("", ["job", "answers", "seconds", "call", "code of"], rows)
