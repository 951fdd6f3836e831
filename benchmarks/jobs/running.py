"""One job in a process of its own, which is stopped with everything that it started when its time is up.

The process is a fork of this one, in which torch and transformers are imported already: that saves each job their
import, some ten seconds on a slow host. A fork must not inherit an initialised device, so nothing here asks CUDA; a
child that finds the device unusable all the same starts a fresh interpreter in its place.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

GRACE = 5.0  # seconds between being told to stop and being killed
_POLL = 0.05
_TAIL = 1500  # characters of the log that are kept


@dataclass(frozen=True)
class Ended:
    """How a job ended: its exit status, None where it was stopped; how long it took; the end of what it printed."""

    status: int | None
    seconds: float
    tail: str


def run(module: str, arguments: Sequence[str], log: Path, limit: float, needs_gpu: bool) -> Ended:
    """Call `main` of `module` with `arguments` in a fork, for at most `limit` seconds.

    Args:
        module: has a `main` that takes a list of arguments and returns an exit status.
        arguments: of the command line.
        log: file for what it prints.
        limit: seconds.
        needs_gpu: whether the device is tried first.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    sys.stdout.flush(), sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _child(module, list(arguments), log, needs_gpu)  # does not return
    status: int | None = None
    stopped = False
    try:
        status = _wait(child, started + limit)
        stopped = status is None
    finally:  # also when this process is told to stop
        if status is None:
            _end(child)
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return Ended(None if stopped else status, time.monotonic() - started, text[-_TAIL:])


def _wait(child: int, deadline: float) -> int | None:
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            _signal(child, signal.SIGKILL)  # whatever it started and left behind
            return os.waitstatus_to_exitcode(status)
        time.sleep(_POLL)
    return None


def _end(child: int) -> None:
    """Tell the child to stop, and end it with its group when it does not."""
    _signal(child, signal.SIGTERM)
    if _wait(child, time.monotonic() + GRACE) is None:
        _signal(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _signal(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # ended already, or not yet a group of its own
        if number == signal.SIGTERM:
            os.kill(group, number)


def _child(module: str, arguments: list[str], log: Path, needs_gpu: bool) -> None:
    status = 1
    try:
        os.setpgid(0, 0)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, 1), os.dup2(file, 2)
        # Whoever replaced these in the parent does not get what the job prints.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
        if needs_gpu and not _device_works():
            os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
        sys.argv = [module, *arguments]
        status = int(importlib.import_module(module).main(arguments) or 0)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, flush=True)
    except BaseException:  # the log says why
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def _device_works() -> bool:
    import torch

    try:
        torch.zeros(1, device="cuda").item()
    except (RuntimeError, AssertionError) as error:
        print(f"a fresh interpreter is started: {error}", flush=True)
        return False
    return True


__all__ = ["Ended", "run"]
