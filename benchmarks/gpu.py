"""`python -m benchmarks.gpu --minutes 7 --out DIR`: what a GPU is asked, most valuable first, while there is time.

Each job is a process of its own with its own limit; `DIR/gpu.json` has the records of all that ended, and is written
anew as each one ends. A job whose record for the same content of the files that it depends on stands in
`benchmarks/results` is passed over, so that a later run goes on where an earlier one stopped: put `gpu.json` there.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.jobs import book
from benchmarks.jobs.listing import JOBS, Job
from benchmarks.jobs.planning import fitting
from benchmarks.jobs.prepare import prepare
from benchmarks.jobs.running import Ended, run
from benchmarks.show.library import RESULTS
from benchmarks.show.table import Table
from benchmarks.show.terminal import show_table

TOLD_SHARE = 0.75  # of a job's limit is what its program is told; the rest is its start and its counting
SMOKE_SECONDS = 60.0
LIMIT_SHARE, LIMIT_EXTRA = 1.5, 10.0  # of a job's estimate, and seconds: then it is stopped


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    made.add_argument("--minutes", type=float, default=7.0, help="for everything; %(default)s")
    made.add_argument("--out", type=Path, metavar="DIR", help=f"where {book.FILE} is written")
    made.add_argument("--only", nargs="+", metavar="JOB", help="these jobs, also where they are answered")
    made.add_argument("--prepared", type=Path, metavar="DIR", help="what --prepare wrote")
    made.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where answers stand; %(default)s")
    made.add_argument("--plan", action="store_true", help="only print the jobs, what each takes and what is answered")
    made.add_argument("--smoke", action="store_true", help="every job in miniature on a CPU: checks the programs")
    made.add_argument("--prepare", type=Path, metavar="DIR", help="only write there what jobs need beyond packages")
    return made


def obstacle(job: Job, arguments: argparse.Namespace) -> str:
    """Why a job cannot run whatever the time; empty where it can."""
    if not job.needs or arguments.smoke:
        return ""
    if arguments.prepared is None:
        return f"needs --prepared DIR with {job.needs}"
    return "" if (arguments.prepared / job.needs).is_dir() else f"needs {job.needs} in {arguments.prepared}"


def plan(arguments: argparse.Namespace, answers: dict[str, str]) -> Table:
    """The jobs in order: what each answers, its seconds, and whether and until when this call runs it."""
    asked = [job for job in JOBS if not arguments.only or job.name in arguments.only]
    states = {job.name: f"left out: {why}" for job in asked if (why := obstacle(job, arguments))}
    states |= {name: f"answered: {by}" for name, by in answers.items() if not arguments.only}
    end = 0
    for job in fitting([job for job in asked if job.name not in states], arguments.minutes):
        end += job.seconds
        states[job.name] = f"ends after about {end} s"
    rows = [[job.name, job.answers, str(job.seconds), states.get(job.name, "no time left")] for job in asked]
    return Table(f"Jobs for {arguments.minutes:g} minutes", ["job", "answers", "seconds", "this call"], rows)


def command_of(job: Job, arguments: argparse.Namespace, folder: Path, seconds: float) -> list[str]:
    """The job's module and its arguments."""
    text = job.smoke if arguments.smoke else job.command
    timed = ["--out", str(folder / "record.json"), "--seconds", f"{seconds:.0f}"] if job.timed else []
    prepared = str(arguments.prepared.resolve()) if arguments.prepared else ""
    return [*(word.format(folder=folder, prepared=prepared) for word in text.split()), *timed]


def run_job(job: Job, arguments: argparse.Namespace, left: float, kept: book.Book) -> str:
    """Run one job for at most `left` seconds; its state."""
    estimate = SMOKE_SECONDS if arguments.smoke else float(job.seconds)
    limit = min(LIMIT_SHARE * estimate + LIMIT_EXTRA, left)
    # Deep enough not to be taken for a result: few files may come back from a machine, and gpu.json has it all.
    folder = (arguments.out / "jobs" / job.name / "work").resolve()
    command = command_of(job, arguments, folder, TOLD_SHARE * limit)
    print(f"=== {job.name}: {' '.join(command)}", flush=True)
    started = time.monotonic()
    try:
        ended = run(command[0], command[1:], folder / "log.txt", limit, needs_gpu=not arguments.smoke)
    except BaseException as error:  # told to stop: what the job has recorded until now is kept, too
        kept.keep(job, command, Ended(None, time.monotonic() - started, f"told to stop: {error!r}"), folder)
        raise
    state = kept.keep(job, command, ended, folder)
    print(f"=== {job.name}: {state} after {ended.seconds:.0f} s", flush=True)
    if state != book.DONE:
        print(ended.tail, flush=True)
    return state


def run_all(arguments: argparse.Namespace, answers: dict[str, str]) -> int:
    """Run what there is time for; how many jobs failed or were stopped. A smoke test runs the same miniature once."""
    deadline = time.monotonic() + 60 * arguments.minutes
    kept = book.Book(arguments.out, arguments.smoke)
    lost = 0
    miniatures: dict[str, str] = {}
    for job in JOBS:
        left = deadline - time.monotonic()
        if arguments.only and job.name not in arguments.only:
            continue
        if job.name in answers and not arguments.only:
            kept.note(job, book.ANSWERED, answers[job.name])
        elif why := obstacle(job, arguments):
            kept.note(job, book.LEFT_OUT, why)
        elif left < (0 if arguments.smoke else job.fewest_seconds):
            kept.note(job, book.LEFT_OUT, f"no time left: {left:.0f} s")
        elif arguments.smoke and job.smoke in miniatures:
            kept.repeat(job, miniatures[job.smoke])
        else:
            kept.note(job, book.RUNNING)
            lost += run_job(job, arguments, left, kept) != book.DONE
            miniatures[job.smoke] = job.name
    return lost


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _import_what_jobs_need() -> None:
    """Jobs are forks of this process: what is imported here is imported once."""
    import transformers  # noqa: F401

    from benchmarks import profile_fusion, train_run  # noqa: F401


def _stop(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, plan or prepare; 1 when a job failed or was stopped."""
    command = parser()
    arguments = command.parse_args(argv)
    names = [job.name for job in JOBS]
    unknown = sorted(set(arguments.only or ()) - set(names))
    if unknown:
        command.error(f"--only: expected names of {', '.join(names)}, got {', '.join(unknown)}")
    if not arguments.minutes > 0:
        command.error(f"--minutes: expected a positive number, got {arguments.minutes:g}")
    if arguments.prepare is not None:
        try:
            print(*prepare(arguments.prepare), sep="\n")
        except ValueError as error:
            command.error(str(error))
        return 0
    answers = {} if arguments.smoke else book.answered(arguments.results)
    if arguments.plan:
        show_table(plan(arguments, answers))
        return 0
    if arguments.out is None:
        command.error("--out: expected a folder, got none")
    if arguments.smoke:  # on the CPU everywhere
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not _has_gpu():
        command.error("expected a GPU that torch can use, found none (--plan and --smoke need none)")
    signal.signal(signal.SIGTERM, _stop)
    _import_what_jobs_need()
    lost = run_all(arguments, answers)
    print(f"{arguments.out / book.FILE}", flush=True)
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
