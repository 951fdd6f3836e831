"""What every op's launcher needs to choose sizes: counts of blocks, powers of two, and the tiles of single rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

MEMORY_ACCESS_BYTES = 16  # the widest load and store of one thread on every target


def blocks(length: int, block: int) -> int:
    """How many blocks of size `block` cover `length`."""
    return -(-length // block)


def power_of_two(length: int) -> int:
    """The smallest power of two that is at least `length`, and at least 1."""
    return 1 << max(length - 1, 0).bit_length()


def unit_stride(x: Tensor) -> Tensor:
    """`x` itself when its last axis is dense, else a copy: kernels address rows by a stride, columns by 1."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def row_stride(x: Tensor | None) -> int:
    """Elements from one row to the next; 0 for a tensor that is left out."""
    return 0 if x is None else x.stride(0)


def constants(config: Any) -> dict[str, Any]:
    """The fields of a configuration as arguments of a launch: block sizes in capitals, options as they are called."""
    return {name if name.startswith("num_") else name.upper(): value for name, value in vars(config).items()}


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


__all__ = [
    "MEMORY_ACCESS_BYTES",
    "RowConfig",
    "blocks",
    "constants",
    "power_of_two",
    "row_config",
    "row_stride",
    "unit_stride",
]
