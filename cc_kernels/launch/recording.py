"""What a launcher does, written down instead of done: for the ahead-of-time report, and to prepare launches.

A launcher is an ordinary function that allocates results with `empty` and calls `launch`. Inside `record_launches` it
runs on tensors without data, and what it would launch is collected. The state belongs to one thread, because autograd
runs backwards in threads of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gpu:
    """What the heuristics ask of a GPU.

    A processor is a streaming multiprocessor or a compute unit. `in_flight` bytes must be on their way to each of them
    at any time to use the bandwidth of the memory: by Little's law the bandwidth times about 1 µs of latency under
    load, divided by the processors.
    """

    warp_size: int
    processors: int
    in_flight: int = 36 * 1024  # H200: 4.8 TB/s


H100 = Gpu(warp_size=32, processors=132)  # for which block sizes are chosen where there is no GPU to ask
_IN_FLIGHT_SM_100 = 54 * 1024  # B200: 8 TB/s over 148 processors
_IN_FLIGHT_AMD = 18 * 1024  # MI300X: 5.3 TB/s over 304 compute units


@dataclass(frozen=True)
class Launch:
    """One recorded kernel launch."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]


@dataclass
class Recording:
    """What a launcher allocated, launched, and wrote to among its arguments."""

    launches: list[Launch] = field(default_factory=list)
    allocated: list[Tensor] = field(default_factory=list)
    written: list[Tensor] = field(default_factory=list)


class _State(threading.local):
    recording: Recording | None = None  # launches are written down there and not done
    compiled: list[Any] | None = None  # launches are done, and what Triton compiled is collected there
    gpu: Gpu | None = None


state = _State()


@contextmanager
def recorded(gpu: Gpu) -> Iterator[Recording]:
    """Write down what launchers do inside the `with` block instead of doing it; heuristics choose for `gpu`."""
    previous = state.recording, state.gpu
    state.recording, state.gpu = Recording(), gpu
    try:
        yield state.recording
    finally:
        state.recording, state.gpu = previous


@contextmanager
def record_launches(warp_size: int, processors: int = H100.processors) -> Iterator[list[Launch]]:
    """Collect the launches made inside the `with` block instead of running them (the tensors may be on `meta`).

    `warp_size` and `processors` are those of the GPU for which the heuristics shall choose.
    """
    with recorded(Gpu(warp_size, processors)) as recording:
        yield recording.launches


def empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """A new dense tensor on the device of `like`, without values, in the dtype of `like` unless another is given."""
    result = like.new_empty(shape, dtype=dtype)
    if state.recording is not None:
        state.recording.allocated.append(result)
    return result


def written(x: Tensor) -> None:
    """Say that a launch wrote into the argument `x`: autograd must know when a tensor that it saved has changed."""
    if state.recording is not None:
        state.recording.written.append(x)
    else:
        torch.autograd.graph.increment_version(x)


@lru_cache(maxsize=64)
def gpu_of(device: torch.device) -> Gpu:
    """The GPU behind a device; an H100 for what is none, so that interpreted kernels get the sizes of a real one."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        if torch.version.hip:
            return Gpu(getattr(properties, "warp_size", 64), properties.multi_processor_count, _IN_FLIGHT_AMD)
        in_flight = _IN_FLIGHT_SM_100 if properties.major >= 10 else H100.in_flight
        return Gpu(32, properties.multi_processor_count, in_flight)
    if device.type == "xpu":
        return Gpu(32, torch.xpu.get_device_properties(device).max_compute_units)
    return H100


def gpu() -> Gpu:
    """The GPU for which a launcher that runs now chooses its sizes."""
    return H100 if state.gpu is None else state.gpu


def warp_size() -> int:
    """Threads of one warp of that GPU: 64 on most of AMD's, 32 elsewhere."""
    return gpu().warp_size
