"""Times that are fit for ratios: A B C A B C …, medians, quartiles, and ratios of the same round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.measure.record import synchronize

FEWEST_ROUNDS = 3


def spread(samples: list[float]) -> dict[str, Any]:
    """Median, quartiles, smallest and number of samples.

    Example:
        >>> spread([3.0, 1.0, 2.0])
        {'median': 2.0, 'low': 1.0, 'high': 3.0, 'min': 1.0, 'samples': 3}
    """
    low, median, high = statistics.quantiles(samples, n=4) if len(samples) > 1 else samples * 3
    return {"median": median, "low": low, "high": high, "min": min(samples), "samples": len(samples)}


def rounds_of(
    calls: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int, deadline: float = float("inf")
) -> dict[str, list[float]]:
    """Seconds of each call in each round, the device synchronised before and after.

    On one thread of a CPU it is the time that the process has used: other processes of the machine do not enter.

    Args:
        calls: by name, warmed up.
        device: that they run on.
        rounds: at most so many; at least three whatever the deadline.
        deadline: by `time.monotonic()`; no round starts after it.

    Example:
        >>> times = rounds_of({"one": lambda: None, "two": lambda: None}, torch.device("cpu"), rounds=4)
        >>> [len(samples) for samples in times.values()]
        [4, 4]
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(max(rounds, FEWEST_ROUNDS)):
        if number >= FEWEST_ROUNDS and time.monotonic() > deadline:
            break
        for name, call in calls.items():
            synchronize(device)
            started = clock()
            call()
            synchronize(device)
            samples[name].append(clock() - started)
    return samples


def ratios(samples: Mapping[str, list[float]], to: str) -> dict[str, dict[str, Any]]:
    """Each call's time over that of the call `to` in the same round: what a slow minute of the machine cancels out of.

    Example:
        >>> ratios({"plain": [1.0, 2.0, 1.0], "ours": [1.5, 3.0, 1.5]}, to="plain")["ours"]["median"]
        1.5
    """
    base = samples[to]
    return {name: spread([x / y for x, y in zip(times, base)]) for name, times in samples.items()}
