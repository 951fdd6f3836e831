"""Tiles of the kernels that stream weight matrices past a few rows: pure functions of the shape, tested on a CPU.

Both kernels are bound by the bytes of the weights, so a configuration must do two things: give every processor work,
and keep enough bytes on their way. By Little's law an H200 (4.8 TB/s, about 1 µs under load) needs 36 KB in flight per
processor. A program walks along the shared axis with loads that run `num_stages − 1` steps ahead of the products, so
that the tiles of those steps are in flight. All programs should be resident at once: with every one holding the same
bytes in flight they share the bandwidth evenly and end together, whatever their number is by the number of processors.

`python -m benchmarks.tune` times the alternatives. What it said on an H100 stands at `gate_up_config`; the tiles of
`transform_rows` were measured as they are, at 92 to 98 % of the bandwidth of reading for d ≥ 4096 and up to 16 rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cc_kernels.launch import MEMORY_ACCESS_BYTES, Gpu, blocks, power_of_two

FEWEST, MOST_BLOCK_ROWS = 16, 64  # rows of one tile: what a tensor core takes at least, and a few prompts or tokens
MOST_STAGES = 9


@dataclass(frozen=True)
class MatrixConfig:
    """Rows, columns of the result, and depth of one tile; `num_stages − 1` tiles are in flight."""

    block_rows: int
    block_columns: int
    block_depth: int
    num_stages: int
    num_warps: int


def _block_rows(rows: int) -> int:
    return min(max(power_of_two(rows), FEWEST), MOST_BLOCK_ROWS)


def _stages(tile_bytes: int, times: float, gpu: Gpu) -> int:
    """As many as fit into `times` the bytes that a processor must have in flight; one of AMD has 64 KB in all."""
    budget = int(times * gpu.in_flight) if gpu.warp_size == 32 else 48 * 1024
    return min(max(budget // tile_bytes, 1), MOST_STAGES - 1) + 1


@lru_cache(maxsize=1024)
def transform_rows_config(rows: int, width: int, element_size: int, gpu: Gpu) -> MatrixConfig:
    """64 columns in 16 bits, narrower while that leaves programs for less than 8 of 11 processors; else 32, then 16.

    M is read along its rows, so that a block of 64 bytes is a whole burst of the memory; neighbouring programs read the
    other half of a cache line at about the same time. At d=4096 in bf16 that is 128 programs of 32 columns, with 48 KB
    of M in flight in each. A tile is 8 KB of M, less where more rows would make the tile of values larger than that.
    72 KB (108 on a B200, whose processors must have more in flight) leave room for two programs on a processor of an
    A100, for three on an H100 or H200. Wider tiles spilled.
    """
    columns = 64 if element_size == 2 else 32
    while columns > FEWEST and blocks(width, columns) < gpu.processors * 8 // 11:
        columns //= 2
    block_rows = _block_rows(rows)
    depth = min(max(8192 // (max(columns, block_rows) * element_size), 32), 256)
    stages = _stages((block_rows + columns) * depth * element_size, 2, gpu)
    # Each thread loads 16 bytes of M at once, so a small tile is for fewer threads.
    warps = 4 if columns * depth * element_size >= 4 * gpu.warp_size * MEMORY_ACCESS_BYTES else 2
    return MatrixConfig(block_rows, columns, depth, stages, warps)


@lru_cache(maxsize=1024)
def gate_up_config(rows: int, inner: int, element_size: int, gpu: Gpu) -> MatrixConfig:
    """32 rows of each weight per program, 64 in 16 bits past 16 rows of x; 256-byte steps in 16 bits, 128-byte past 32.

    Weights are read along d. On an H100, I=14336, d=4096, bf16, the best of 24 tilings by `benchmarks.tune` took
    86.7 µs for 1 row, 87.2 for 8 and 88.1 for 16, and 32 columns in 256-byte steps came within 0.3 µs of each; the
    128-byte steps of before took 89.9, 92.4 and 93.1. For 32 rows 64 columns took 90.1 µs, 32 columns 93.1. For 64 rows
    49 KB of tiles took 91.0 µs and 74 KB, which let one program less share a processor, 96.6. In fp32, without tensor
    cores, tiles with 64 rows of each weight spilled, and with 64 rows of x unless 8 warps share them. So did 6 and 7
    stages for 16 rows in 16 bits, which a B200 would get; with 5 its two programs have 160 KB on their way.
    """
    block_rows = _block_rows(rows)
    columns = 64 if element_size == 2 and block_rows > FEWEST else 32
    depth = 128 if element_size == 2 and block_rows <= 32 else max(128 // element_size, 16)
    times = (56 if block_rows == MOST_BLOCK_ROWS else 88) / 36  # KB on an H100
    stages = _stages((block_rows + 2 * columns) * depth * element_size, times, gpu)
    if element_size == 2:
        stages = min(stages, 5)
    return MatrixConfig(block_rows, columns, depth, stages, num_warps=8 if element_size > 2 and block_rows == 64 else 4)
