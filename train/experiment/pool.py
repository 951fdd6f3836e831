"""All jobs of an experiment, several processes at a time; what has ended is kept and not run again."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Container
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from rich.console import Console

from cc_model.files import write_text
from train.common.console import open_console, say
from train.common.files import json_lines, output_folder, read_records
from train.common.modes import VANILLA
from train.experiment.data import load
from train.experiment.settings import TRUTH, Settings

RESULTS = "results.jsonl"
Job = tuple[str, int]


def read_results(folder: str | Path, settings: Settings | None = None) -> list[dict[str, Any]]:
    """The results in a folder; with settings only those that they would give again."""
    path = Path(folder) / RESULTS
    if not path.is_file():
        return []
    results = [_named(record.row) for record in read_records(path, "out")]
    if settings is None:
        return results
    known = {name: settings.fingerprint(name) for name in settings.conditions}
    return [result for result in results if result["fingerprint"] == known.get(result["condition"])]


def _named(result: dict[str, Any]) -> dict[str, Any]:
    """A result of an earlier version, in which vanilla's mode was called plain, under the names of today."""
    return {**result, "modes": {VANILLA if name == "plain" else name: mode for name, mode in result["modes"].items()}}


def run_all(
    settings: Settings,
    folder: str | Path,
    jobs: int = 1,
    stop_after: float | None = None,
    console: Console | None = None,
    only: Container[str] | None = None,
    models: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Run what is missing in `folder`; every result is written as it ends. Returns all results.

    Seeds come one after the other, each with all conditions, so that what has run when time is up can be compared. A
    job that fails is reported and does not end the others.

    Args:
        settings: what to run.
        folder: of `results.jsonl`.
        jobs: processes at a time.
        stop_after: seconds after which no job is started.
        console: of rich; a new one if None.
        only: the conditions that run; all if None. Which others there are is part of what a result depends on.
        models: the folder that keeps each trained model as `CONDITION-SEED`; None keeps none. What has run is not run
            again for it.

    Raises:
        ValueError: `jobs` is below 1, nothing can be written into a folder, or a seed's rows cannot be had.
    """
    if jobs < 1:
        raise ValueError(f"jobs: expected 1 or more, got {jobs}")
    console, root, start = open_console(console), output_folder(folder, "out"), time.monotonic()
    if models is not None:
        output_folder(models, "models")
    results = read_results(root, settings)
    others = [result for result in read_results(root) if result not in results]
    done = {(result["condition"], result["seed"]) for result in results}
    names = [name for name in settings.conditions if only is None or name in only]
    waiting: list[Job] = [(name, seed) for seed in settings.seeds for name in names if (name, seed) not in done]
    for seed in {seed for _, seed in waiting}:
        load(settings, seed)  # what is wrong with the data is said once, before the first job
    say(console, f"{len(done)} of {len(done) + len(waiting)} jobs are done, {jobs} at a time")
    # Forked from a server that has imported everything, before any device is initialised.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.experiment.job"])
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_worker) as pool:
        running: dict[Future[Any], Job] = {}
        while waiting or running:
            late = stop_after is not None and time.monotonic() - start > stop_after
            if late and waiting:
                say(console, f"time is up: {len(waiting)} jobs are left for another run")
                waiting = []
            while waiting and len(running) < jobs:
                job = next((job for job in waiting if _ready(settings, job, results)), None)
                if job is None:
                    break
                waiting.remove(job)
                running[pool.submit(_guarded, settings, *job, _teacher(settings, job, results), models)] = job
            if waiting and not running:
                say(console, f"{len(waiting)} jobs are left out, because their teacher failed")
                waiting = []
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                name, seed = running.pop(future)
                result, failure = future.result()
                if failure:
                    say(console, f"{name}, seed {seed} failed:\n{failure}")
                    continue
                results.append(result)
                write_text(root / RESULTS, json_lines(others + results))
                say(console, _line(result, time.monotonic() - start))
    return results


def _teacher(settings: Settings, job: Job, results: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The result that the job learns from, if it has ended."""
    wanted = (settings.conditions[job[0]].teacher, job[1])
    return next((result for result in results if (result["condition"], result["seed"]) == wanted), None)


def _ready(settings: Settings, job: Job, results: list[dict[str, Any]]) -> bool:
    return settings.conditions[job[0]].teacher in (None, TRUTH) or _teacher(settings, job, results) is not None


def _line(result: dict[str, Any], elapsed: float) -> str:
    shares = (
        f"{mode} {100 * m['correct'].count('1') / len(m['correct']):.1f} %" for mode, m in result["modes"].items()
    )
    times = " + ".join(f"{seconds:.0f}" for seconds in result["seconds"].values())
    return f"{elapsed:5.0f} s  {result['condition']}, seed {result['seed']} ({times} s): {', '.join(shares)}"


def _worker() -> None:
    """What a process does before its first job."""
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # the processes are what runs in parallel
    torch.set_float32_matmul_precision("high")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _end_with_parent() -> None:
    """End at once when the process that wants the results is gone, killed for one: nobody would keep them."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _guarded(
    settings: Settings, name: str, seed: int, teacher: dict[str, Any] | None, models: str | Path | None
) -> tuple[dict[str, Any] | None, str]:
    from train.experiment.job import run_job

    try:
        return run_job(settings, name, seed, teacher, models), ""
    except Exception:
        return None, traceback.format_exc(limit=12)


__all__ = ["RESULTS", "read_results", "run_all"]
