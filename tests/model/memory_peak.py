"""Peak memory of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def peak_bytes(step: Callable[[], Any]) -> int:
    """The largest sum of what `step` has allocated and not freed, by every event of PyTorch's CPU allocator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    results = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in results if event.name() == "[memory]")
    alive = peak = 0
    for _, change in changes:
        alive += change
        peak = max(peak, alive)
    return peak


def gpu_peak_bytes(step: Callable[[], Any]) -> int:
    """The same on the current GPU, by its allocator's counters."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
