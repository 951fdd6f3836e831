"""Block sizes of the kernels behind `decide` and `connect`: pure functions of the shape, tested on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cc_kernels.launch import MEMORY_ACCESS_BYTES, Gpu, blocks, power_of_two

TILE = 4096  # elements of one (layers, columns) tile: 16 fp32 registers per thread at 256 threads
TILE_BYTES = 32 * 1024  # of the bank that a program of the first launch backward has in flight
MOST_ELEMENTS = 16384  # of such a tile: 64 fp32 registers per thread at 256 threads
BANK_BYTES = 16 * 1024  # of one tile of the first launch forward, of which several are in flight
MOST_THREADS = 256
MOST_BLOCK_ROWS, FEW_ROWS = 16, 4
MOST_AHEAD = 4  # tiles
# Sizes are chosen for this many rows, whatever their number: another size would be another variant to compile, and a
# batch of a new size would stall training.
TYPICAL_ROWS = 16
MOST_REPEATED_ROWS = 64  # whose ∂z every program of the second launch backward works out for itself


def few_programs(gpu: Gpu) -> int:
    """About one for each processor: 128 on an H100."""
    return gpu.processors - gpu.processors // 32


@dataclass(frozen=True)
class BankConfig:
    """The first launch forward: one program per group of rows and block of columns, over all layers."""

    block_layers: int
    block_rows: int
    block_width: int
    block_logits: int  # layers of W at a time
    width_blocks: int
    stages: int  # of the loop over layers: all but one are copied ahead
    num_warps: int


@dataclass(frozen=True)
class MixConfig:
    """The first launch backward: one program per row, block of layers, and part of `steps` blocks of columns."""

    block_layers: int
    block_width: int
    steps: int
    parts: int
    num_warps: int


@dataclass(frozen=True)
class ColumnsConfig:
    """The last launch backward: one program per block of columns and of layers, over all rows in groups."""

    block_layers: int
    block_rows: int
    block_width: int
    num_warps: int


@dataclass(frozen=True)
class OutputConfig:
    """The second launches, which add up partial sums, decide, and write `steps` blocks of columns each."""

    block_layers: int
    block_partials: int
    block_width: int
    steps: int
    width_blocks: int
    num_warps: int


def _warps(elements: int, element_size: int, warp_size: int) -> int:
    """One 16-byte access per thread and tile at least, and at most 256 threads."""
    accesses = elements * element_size // MEMORY_ACCESS_BYTES
    return min(max(accesses // warp_size, 1), MOST_THREADS // warp_size)


@lru_cache(maxsize=1024)
def bank_config(layers: int, rows: int, width: int, element_size: int, gpu: Gpu, per_layer: bool = False) -> BankConfig:
    """The tile of the first launch forward: rows, columns and layers.

    A tile takes 4 rows, or 16 where there are more than 4. They share what they read of W; alone, each row would read
    all of W from L2, as many bytes as its bank. It takes 32 columns, and 64 where about one block of columns for each
    processor remains: 32 columns are 64 bytes of a row in bf16, two sectors of the memory. It takes all layers where
    they fit into `TILE_BYTES`, otherwise what fits into `BANK_BYTES`; then as many tiles are copied to shared memory
    ahead of time as a processor must have in flight.

    With a folded matrix per layer (`per_layer`) a tile has one row, because nearly all bytes are those of the matrix,
    and few elements, because a tile of sums stays in registers beside the one that is read.

    On an H100 in bf16 both launches of `connect` together took 10.3 µs at L=32, K=16, d=4096, 25.7 at L=80, d=8192 and
    60.4 at L=128, d=16384; the last two with tiles of twice the size, none of them copied ahead. One row per program,
    which read W once for each row, took 15.4, 57.2 and 169.8.
    """
    block_width = 32
    if blocks(width, 2 * block_width) >= few_programs(gpu):
        block_width *= 2  # and not more: products over 128 columns spilled on sm_90 with a folded matrix
    block_width = min(block_width, max(power_of_two(width), 16))  # a product of tiles takes 16 at least
    block_rows = 1 if per_layer else FEW_ROWS if rows <= FEW_ROWS else MOST_BLOCK_ROWS
    block_layers, columns = power_of_two(layers), block_rows * block_width
    if per_layer:
        block_layers = min(block_layers, max(TILE // 2 // columns, 1))
    elif block_layers * columns * element_size > TILE_BYTES:
        block_layers = min(block_layers, max(BANK_BYTES // element_size // columns, 1))
    return BankConfig(
        block_layers=block_layers,
        block_rows=block_rows,
        block_width=block_width,
        block_logits=min(power_of_two(layers), 32),
        width_blocks=blocks(width, block_width),
        stages=min(blocks(gpu.in_flight, BANK_BYTES), MOST_AHEAD) + 1,
        num_warps=_warps(block_layers * block_rows * block_width, element_size, gpu.warp_size),
    )


@lru_cache(maxsize=1024)
def mix_config(layers: int, width: int, element_size: int, gpu: Gpu) -> MixConfig:
    """32 layers by 512 columns in 16 bits, narrower while there would be few programs, down to 64.

    Wide, and several blocks in turn where programs remain enough: each part is read again by every program of the
    second launch that works on its row.
    """
    block_layers = min(power_of_two(layers), 32)
    programs = TYPICAL_ROWS * blocks(layers, block_layers)
    block_width = min(min(TILE_BYTES // element_size, MOST_ELEMENTS) // block_layers, power_of_two(width))
    while block_width > 64 and programs * blocks(width, block_width) < few_programs(gpu):
        block_width //= 2
    steps = 1
    while steps * block_width < width and programs * blocks(width, 2 * steps * block_width) >= 2 * few_programs(gpu):
        steps *= 2
    return MixConfig(
        block_layers=block_layers,
        block_width=block_width,
        steps=steps,
        parts=blocks(width, steps * block_width),
        num_warps=_warps(block_layers * block_width, element_size, gpu.warp_size),
    )


@lru_cache(maxsize=1024)
def columns_config(layers: int, width: int, gpu: Gpu) -> ColumnsConfig:
    """All of up to 64 layers by 32 columns, wider while about one program for each processor and half a `TILE` remain.

    16 rows at a time: small products that stay in registers; tensor cores have no fp32, and a product of tiles takes 16
    of each axis at least. More layers are taken by 32: a product over 128 of them spilled on sm_100.
    """
    block_layers = max(power_of_two(layers), 16) if layers <= 64 else 32
    block_width = 32
    while blocks(width, 2 * block_width) >= few_programs(gpu) and 2 * block_width * block_layers <= TILE // 2:
        block_width *= 2
    return ColumnsConfig(
        block_layers=block_layers,
        block_rows=16,
        block_width=min(block_width, max(power_of_two(width), 16)),
        num_warps=128 // gpu.warp_size,
    )


@lru_cache(maxsize=1024)
def output_config(layers: int, width: int, partials: int, select: bool, gpu: Gpu) -> OutputConfig:
    """`select`: one row is copied, so that a block has no layers and 1024 columns at least; else it has all layers.

    A program repeats the sum over `partials` blocks. So a copy is made by programs as wide as leave about one for each
    processor, and a tile is followed by up to 7 more while about two remain. A tile of 4096 elements over 128 threads
    instead of 256 spilled on sm_100.
    """
    block_layers, few = power_of_two(layers), few_programs(gpu)
    steps = 1
    if select:
        block_width = 1024
        while block_width < 4096 and TYPICAL_ROWS * blocks(width, 2 * block_width) >= few:
            block_width *= 2
    else:
        block_width = max(TILE // block_layers, 16)
        while steps < 8 and TYPICAL_ROWS * blocks(width, 2 * steps * block_width) >= 2 * few:
            steps *= 2
    block_width = min(block_width, power_of_two(width))
    return OutputConfig(
        block_layers=block_layers,
        block_partials=min(power_of_two(partials), max(TILE // block_layers, 1)),
        block_width=block_width,
        steps=steps,
        width_blocks=max(blocks(width, block_width * steps), 1),
        num_warps=(128 if select or width == 1 else MOST_THREADS) // gpu.warp_size,
    )
