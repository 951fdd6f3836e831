"""Where the ops meet Triton: the optional import, the launch under the right device, and the recording of launches.

Importing this module works without triton; the kernels are then plain functions that nobody calls. Triton reads
`TRITON_INTERPRET` when a kernel is decorated, so `INTERPRETED` is fixed once this module is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

HAS_TRITON = triton is not None
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
MEMORY_ACCESS_BYTES = 16  # the widest load and store of one thread on every target


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`triton.jit` with its options, as a decorator; without triton the function stays as it is."""
    return triton.jit(**options) if HAS_TRITON else lambda fn: fn


@dataclass(frozen=True)
class Launch:
    """One recorded kernel launch."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]


# Compiled kernels by everything that Triton specialises on, so that a repeated launch does not work that out again.
_compiled: dict[tuple[Any, ...], tuple[Callable[..., Any], int, Any]] = {}
MOST_COMPILED = 8192  # entries, a few hundred bytes each; sizes that vary from batch to batch make new ones
# Devices with such launches. Not ROCm, where Triton also looks at allocations.
DIRECT = frozenset({"cuda"} if HAS_TRITON and not INTERPRETED and torch.version.hip is None else ())

_recorded: list[Launch] | None = None
_warp_size = 64 if torch.version.hip else 32


@contextmanager
def record_launches(warp_size: int) -> Iterator[list[Launch]]:
    """Collect the launches made inside the `with` block instead of running them (the tensors may be on `meta`).

    `warp_size` is that of the GPU for which the heuristics shall choose.
    """
    global _recorded, _warp_size
    previous = _recorded, _warp_size
    _recorded, _warp_size = [], warp_size
    try:
        yield _recorded
    finally:
        _recorded, _warp_size = previous


def warp_size() -> int:
    """Threads of one warp: 64 on ROCm, 32 elsewhere, or what `record_launches` was told."""
    return _warp_size


def launch(kernel: Any, grid: tuple[int, ...], like: Tensor, **arguments: Any) -> None:
    """Run `kernel` on `grid` on the device of `like`; an empty grid launches nothing.

    Fused multiply-adds are asked for by name, because the default of Triton changes with 3.10.
    """
    if 0 in grid:
        return
    arguments["enable_fp_fusion"] = True
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, arguments))
        return
    device = like.device
    if device.type != "cpu":
        backend = getattr(torch, device.type)
        if device.index != backend.current_device():  # entering the guard costs more than asking
            with backend.device(device):
                _run(kernel, grid, device, arguments)
            return
    _run(kernel, grid, device, arguments)


def _run(kernel: Any, grid: tuple[int, ...], device: torch.device, arguments: dict[str, Any]) -> None:
    """`kernel[grid](**arguments)`; the second time with like arguments the compiled kernel itself is launched.

    Triton specialises on dtypes, on pointers that are multiples of 16, and on some values of integers. The key holds
    all integers, which is stricter. Hooks of profilers run in both cases.
    """
    if device.type not in DIRECT:
        kernel[grid](**arguments)
        return
    values = tuple(arguments.values())
    key = (id(kernel), grid, device.index, *[value if type(value) is int else _specialised(value) for value in values])
    known = _compiled.get(key)
    if known is not None:
        again, count, _ = known
        again(*values[:count])
        return
    again, names = _first_launch(kernel, grid, arguments), tuple(kernel.arg_names)
    if tuple(arguments)[: len(names)] == names:  # positional from now on
        if len(_compiled) >= MOST_COMPILED:
            _compiled.clear()
        _compiled[key] = again, len(names), kernel  # the kernel, so that no other one gets its id


def _specialised(value: Any) -> Any:
    return (value.dtype, value.data_ptr() % 16 == 0) if isinstance(value, Tensor) else value


def _first_launch(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> Callable[..., Any]:
    """Launch through Triton, which compiles; returns what launches the compiled kernel on the same grid again."""
    return kernel[grid](**arguments)[(*grid, 1, 1)[:3]]


def constants(config: Any) -> dict[str, Any]:
    """The fields of a configuration as arguments of a launch: block sizes in capitals, options as they are called."""
    return {name if name.startswith("num_") else name.upper(): value for name, value in vars(config).items()}


def arithmetic_dtype(dtype: torch.dtype) -> Any:
    """Triton's name for the dtype in which a kernel calculates on `dtype`: fp64 for fp64, else fp32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def blocks(length: int, block: int) -> int:
    """How many blocks of size `block` cover `length`."""
    return -(-length // block)


def power_of_two(length: int) -> int:
    """The smallest power of two that is at least `length`, and at least 1."""
    return 1 << max(length - 1, 0).bit_length()


def unit_stride(x: Tensor) -> Tensor:
    """`x` itself when its last axis is dense, else a copy: kernels address rows by a stride, columns by 1."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


@dataclass(frozen=True)
class RowConfig:
    """Columns and warps of one program that handles a part of one row."""

    block: int
    num_warps: int


@lru_cache(maxsize=1024)
def row_config(width: int, element_size: int, warp_size: int) -> RowConfig:
    """One 16-byte access per thread, 128 threads, and no more lanes than columns.

    The K·d bytes of these kernels are far below what a GPU keeps in flight (K=16, d=4096, bf16: 128 KB), so that the
    most programs give the least latency. On an H100 `capture_rows` takes 1.9 µs there, as torch.compile's kernel does.
    """
    vector = MEMORY_ACCESS_BYTES // element_size
    block = min(128 * vector, max(power_of_two(width), warp_size))
    return RowConfig(block=block, num_warps=max(1, block // (warp_size * vector)))
