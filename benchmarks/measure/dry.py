"""What our own Python costs without a GPU: everything happens but the launches, of kernels and of CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cc_kernels import backend
from cc_kernels.launch import launching
from cc_model.fast_paths import pivot_graph


class _NotLaunched:
    """Stands for a compiled kernel; starting it does nothing."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *values: None


class _NotReplayed:
    """Stands for a CUDA graph: recording runs the call, and a replay does nothing."""

    def __init__(self, device: torch.device, pool: Any) -> None:
        pass

    @staticmethod
    def new_pool(device: torch.device) -> None:
        """Memory is not shared."""

    @staticmethod
    def obstacle(device: torch.device) -> None:
        """Nothing stands against it."""

    def capture(self, run: Callable[[], Tensor]) -> Tensor:
        """The result of the recorded call."""
        return run()

    def replay(self) -> None:
        """The host's part of it is one call of the driver."""


def _allocation(like: Tensor, device: torch.device) -> Callable[[], Tensor]:
    """Allocates as a launch does. Indices that no kernel writes must be valid, so these are zeros."""
    if like.dtype.is_floating_point:
        return _ALLOCATION(like, device)
    return lambda: torch.zeros_like(like, device=device)


_ALLOCATION = launching.allocation


@contextmanager
def without_launches() -> Iterator[None]:
    """Our kernels are called on CPU tensors, and the pivot pass is replayed, but nothing is launched.

    Results hold what was in their memory. Denormal numbers, with which a CPU computes slowly, count as zeros.
    """
    direct, through_triton, serves, graph = (
        launching.DIRECT,
        launching.through_triton,
        backend.triton_serves,
        pivot_graph.CudaGraph,
    )
    launching.DIRECT, backend.triton_serves = frozenset({"cpu"}), lambda op, tensor: True
    launching.through_triton, launching.allocation = lambda kernel, grid, arguments: _NotLaunched(), _allocation
    pivot_graph.CudaGraph = _NotReplayed  # type: ignore[misc, assignment]
    launching.forget()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        launching.DIRECT, launching.through_triton, backend.triton_serves = direct, through_triton, serves
        launching.allocation, pivot_graph.CudaGraph = _ALLOCATION, graph  # type: ignore[misc]
        launching.forget()


__all__ = ["without_launches"]
