"""Processes with gloo between them, in which tests run functions: started once, and stopped when one hangs."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

TIMEOUT = 120.0  # seconds for one function in all processes, the start of the processes included


def _serve(rank: int, count: int, store: str, pipe: Any) -> None:
    """Join the group, then run what comes through the pipe."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(count))
    # Shorter than TIMEOUT, so that a collective that one rank misses is named by torch and not only killed.
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timedelta(seconds=TIMEOUT / 2)
    )
    while (task := pipe.recv()) is not None:
        function, args, kwargs = task
        try:
            pipe.send((function(*args, **kwargs), None))
        except Exception:
            pipe.send((None, traceback.format_exc()))
    dist.destroy_process_group()


class GlooPool:
    """`count` processes, rank 0 to `count` − 1, in one gloo group.

    Args:
        count: number of processes.
    """

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.folder = tempfile.TemporaryDirectory()
        self.pipes, self.members = [], []
        for rank in range(count):
            ours, theirs = context.Pipe()
            member = context.Process(
                target=_serve, args=(rank, count, os.path.join(self.folder.name, "store"), theirs), daemon=True
            )
            member.start()
            theirs.close()
            self.pipes.append(ours)
            self.members.append(member)

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """`function(*args, **kwargs)` in every process; the results in order of rank.

        `function` belongs to an importable module, not to a test file.

        Raises:
            RuntimeError: a process failed, with its traceback, or did not answer in time.
        """
        for pipe in self.pipes:
            pipe.send((function, args, kwargs))
        results, failures = [], []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(TIMEOUT):
                self.close(kill=True)
                raise RuntimeError(f"{function.__name__}: rank {rank} did not answer within {TIMEOUT:.0f} s")
            result, failure = pipe.recv()
            results.append(result)
            if failure is not None:
                failures.append(f"rank {rank}: {failure}")
        if failures:
            self.close(kill=True)  # the group may be out of step
            raise RuntimeError(f"{function.__name__}: " + "\n".join(failures))
        return results

    @property
    def alive(self) -> bool:
        """Whether every process still serves."""
        return all(member.is_alive() for member in self.members)

    def close(self, kill: bool = False) -> None:
        """Stop the processes."""
        for pipe, member in zip(self.pipes, self.members):
            if kill:
                member.kill()
            elif member.is_alive():
                pipe.send(None)
            member.join(timeout=10)
        self.folder.cleanup()
