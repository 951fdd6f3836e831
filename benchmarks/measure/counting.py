"""What does not flake: tensor ops, kernel launches, host synchronisations and peak memory of one call."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measure.record import synchronize

# Ops whose result the host waits for, had the tensors been on a GPU.
SYNCHRONISING = frozenset(
    {
        "aten._local_scalar_dense.default",
        "aten.nonzero.default",
        "aten.is_nonzero.default",
        "aten.masked_select.default",
        "aten.equal.default",
    }
)
_WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")


class OpCounter(TorchDispatchMode):
    """Counts the ops that reach the dispatcher: views, others, and those that make the host wait for a GPU.

    Example:
        >>> with OpCounter() as counter:
        ...     _ = torch.ones(4).view(2, 2).sum().item()
        >>> counter.ops.total(), counter.views, counter.synchronisations
        (3, 1, 1)
    """

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()
        self.views = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count `func` and run it."""
        if func.is_view:
            self.views += 1
        else:
            self.ops[str(func)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def synchronisations(self) -> int:
        """How many of the ops a GPU would have made the host wait for."""
        return sum(count for name, count in self.ops.items() if name in SYNCHRONISING)


def count_ops(call: Callable[[], Any]) -> dict[str, int]:
    """Ops of `call` by the dispatcher, on any device; not inside compiled code."""
    with OpCounter() as counter:
        call()
    return {"ops": counter.ops.total(), "views": counter.views, "synchronising_ops": counter.synchronisations}


def count_launches(call: Callable[[], Any], device: torch.device, trace: str | None = None) -> dict[str, Any]:
    """Kernels, copies and waits of `call` on a GPU by torch.profiler; `trace` is a file for Chrome or Perfetto.

    The profiler's own wait at the end is subtracted.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    synchronize(device)
    with profile(activities=activities) as profiler:
        call()
        synchronize(device)
    if trace is not None:
        profiler.export_chrome_trace(trace)
    if not on_gpu:
        return {}
    events = [
        event
        for event in profiler.events() or []
        if event.device_type == torch.autograd.DeviceType.CUDA and not _is_annotation(event)
    ]
    copies = sum(event.name.startswith(("Memcpy", "Memset")) for event in events)
    calls = Counter({average.key: average.count for average in profiler.key_averages()})
    return {
        "kernels": len(events) - copies,
        "copies": copies,
        "device_ms": sum(event.time_range.elapsed_us() for event in events) / 1e3,
        "graph_launches": calls["cudaGraphLaunch"],
        "waits": max(sum(calls[name] for name in _WAITS) - 1, 0),
    }


def _is_annotation(event: Any) -> bool:
    """A span that a library named, such as the optimizer's step, drawn over the kernels in it."""
    return getattr(event, "is_user_annotation", False) or event.name.startswith(("Optimizer.", "## ", "Torch-Compiled"))


def count_waits(call: Callable[[], Any], device: torch.device) -> int:
    """Host synchronisations of `call` that PyTorch itself reports on a GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


def peak_bytes(call: Callable[[], Any], device: torch.device, forget: Callable[[], Any] = lambda: None) -> int:
    """The most memory that `call` had allocated beyond what was allocated before it.

    On a CPU by every event of PyTorch's allocator, on a GPU by the allocator's own peak. `forget` runs before and frees
    what `call` would free, such as gradients of an earlier step.

    Example:
        >>> round(peak_bytes(lambda: torch.ones(2**18) + 1, torch.device("cpu")) / 2**20, 2)
        2.0
    """
    forget()
    if device.type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    results = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in results if event.name() == "[memory]")
    alive = peak = 0
    for _, change in changes:
        alive += change
        peak = max(peak, alive)
    return peak
