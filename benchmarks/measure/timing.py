"""Device time under graph replay with a cold L2, eager time, and the bandwidth of a plain copy.

Pitfalls handled here: a launch from Python can take longer than a small kernel, so device time is that of a CUDA graph;
inputs of the previous repetition lie in the L2 cache, so each repetition in the graph has inputs of its own, together
several times the cache; clocks ramp up, so there is a warm-up, and the median and the quartiles are reported. On a CPU,
which only smoke tests use, both times are wall time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from cc_kernels.launch import blocks, jit, launch, tl

COLD = 4  # all inputs together are this many times the L2 cache, unless that takes more than MOST_COPIES
MOST_COPIES = 256
REPLAYS = 30
Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Microseconds for one call."""

    median: float
    low: float  # first quartile
    high: float  # third quartile
    repetitions: int


def _summary(samples: list[float]) -> Timing:
    low, median, high = statistics.quantiles(samples, n=4)
    return Timing(median, low, high, len(samples))


def copies_for(bytes_of_one: int, device: torch.device) -> int:
    """How many sets of inputs make the cache cold."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(MOST_COPIES, -(-COLD * cache // max(bytes_of_one, 1))))


def device_time(calls: Sequence[Call], device: torch.device) -> Timing:
    """Time of one call, from the replay of a graph that holds all `calls`, which differ in their inputs only."""
    if device.type != "cuda":
        return eager_time(calls, device)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            for call in calls:
                call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    for _ in range(5):
        graph.replay()
    samples = []
    for _ in range(REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) * 1e3 / len(calls))
    return _summary(samples)


def eager_time(calls: Sequence[Call], device: torch.device) -> Timing:
    """Wall time of one call from Python, the queue never empty."""
    samples = []
    for repetition in range(5 + REPLAYS):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        for call in calls:
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repetition >= 5:
            samples.append((time.perf_counter() - started) * 1e6 / len(calls))
    return _summary(samples)


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second, read and written, of a device copy of `size` bytes."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timing = device_time([lambda: target.copy_(source)], device)
    return 2 * size / (timing.median * 1e-6)


@jit()
def _read_kernel(x_ptr, sums_ptr, size, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    offsets = program * BLOCK + tl.arange(0, BLOCK)
    tl.store(sums_ptr + program, tl.sum(tl.load(x_ptr + offsets, mask=offsets < size, other=0)))


def read_once(x: Tensor) -> Tensor:
    """Sums over blocks of int32 numbers: reads everything and writes next to nothing."""
    if x.device.type == "cpu":
        return x.sum()
    block = 4096
    sums = x.new_empty(blocks(x.numel(), block))
    launch(_read_kernel, (len(sums),), like=x, x_ptr=x, sums_ptr=sums, size=x.numel(), BLOCK=block, num_warps=4)
    return sums


@lru_cache
def read_bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second of a kernel that only reads, from tensors of `size` bytes that are not in the L2 cache."""
    sources = [torch.ones(blocks(size, 4), dtype=torch.int32, device=device) for _ in range(copies_for(size, device))]
    timing = device_time([partial(read_once, source) for source in sources], device)
    return size / (timing.median * 1e-6)
