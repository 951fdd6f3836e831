"""Block sizes of the kernels behind `decide` and `connect`: pure functions of the shape, tested on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cc_kernels.launch import MEMORY_ACCESS_BYTES, blocks, power_of_two

TILE = 4096  # elements of one (layers, columns) tile: 16 fp32 registers per thread at 256 threads
TILE_BYTES = 32 * 1024  # of the bank that a program of a first launch has in flight
MOST_ELEMENTS = 16384  # of such a tile: 64 fp32 registers per thread at 256 threads
MOST_THREADS = 256
ENOUGH_PROGRAMS = 256  # about two for each of the 132 processors of an H100 or H200
FEW_PROGRAMS = 128  # about one


@dataclass(frozen=True)
class BankConfig:
    """The first launch forward: one program per group of rows and block of columns, over all layers."""

    block_layers: int
    block_rows: int
    block_width: int
    width_blocks: int
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
class WeightConfig:
    """The last launch backward: one program per block of layers and columns of W, over all rows."""

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


def _most_elements(element_size: int) -> int:
    return min(TILE_BYTES // element_size, MOST_ELEMENTS)


def _warps(elements: int, element_size: int, warp_size: int) -> int:
    """One 16-byte access per thread and tile at least, and at most 256 threads."""
    accesses = elements * element_size // MEMORY_ACCESS_BYTES
    return min(max(accesses // warp_size, 1), MOST_THREADS // warp_size)


@lru_cache(maxsize=1024)
def bank_config(
    layers: int, rows: int, width: int, element_size: int, warp_size: int, per_layer: bool = False
) -> BankConfig:
    """The tile of the first launch forward: rows, columns and layers.

    A tile takes up to 16 rows. They share what they read of W; alone, each row would read all of W from L2, as many
    bytes as its bank. It takes 32 columns, and more where 128 blocks of columns remain: 32 columns are 64 bytes of a
    row in bf16, two sectors of the memory. It takes as many layers as then fit into `TILE_BYTES`, in fp32 into half of
    that: full tiles spilled on sm_100 at L=128 and d=16384.

    With a folded matrix per layer (`per_layer`) a tile has one row, because nearly all bytes are those of the matrix,
    and half as many elements, because a tile of sums stays in registers beside the one that is read.

    On an H100 in bf16 both launches of `connect` together take 10.3 µs at L=32, K=16, d=4096, 25.7 at L=80, d=8192 and
    60.4 at L=128, d=16384. One row per program, which read W once for each row, took 15.4, 57.2 and 169.8.
    """
    block_width = 32
    while blocks(width, 2 * block_width) >= FEW_PROGRAMS:
        block_width *= 2
    block_width = min(block_width, power_of_two(width))
    most = _most_elements(element_size) if element_size <= 2 else TILE
    elements = TILE // 2 if per_layer else most
    block_rows = 1 if per_layer else min(power_of_two(rows), 16)
    block_layers = min(power_of_two(layers), max(elements // (block_rows * block_width), 1))
    return BankConfig(
        block_layers=block_layers,
        block_rows=block_rows,
        block_width=block_width,
        width_blocks=blocks(width, block_width),
        num_warps=_warps(block_layers * block_rows * block_width, element_size, warp_size),
    )


@lru_cache(maxsize=1024)
def mix_config(layers: int, rows: int, width: int, element_size: int, warp_size: int) -> MixConfig:
    """32 layers by 512 columns in 16 bits, narrower while there would be fewer than 128 programs, down to 64.

    Wide, and several blocks in turn where programs remain enough: each part is read again by every program of the
    second launch that works on its row.
    """
    block_layers = min(power_of_two(layers), 32)
    layer_blocks = blocks(layers, block_layers)
    block_width = min(_most_elements(element_size) // block_layers, power_of_two(width))
    while block_width > 64 and rows * layer_blocks * blocks(width, block_width) < FEW_PROGRAMS:
        block_width //= 2
    steps = 1
    while steps * block_width < width and (
        rows * layer_blocks * blocks(width, 2 * steps * block_width) >= ENOUGH_PROGRAMS
    ):
        steps *= 2
    return MixConfig(
        block_layers=block_layers,
        block_width=block_width,
        steps=steps,
        parts=blocks(width, steps * block_width),
        num_warps=_warps(block_layers * block_width, element_size, warp_size),
    )


@lru_cache(maxsize=1024)
def weight_config(layers: int, width: int, warp_size: int) -> WeightConfig:
    """32 by 32 of W, 16 rows at a time: a small product that stays in registers; tensor cores have no fp32."""
    return WeightConfig(
        block_layers=min(max(power_of_two(layers), 16), 32),
        block_rows=16,
        block_width=min(max(power_of_two(width), 16), 32),
        num_warps=128 // warp_size,
    )


@lru_cache(maxsize=1024)
def output_config(layers: int, rows: int, width: int, partials: int, select: bool, warp_size: int) -> OutputConfig:
    """`select`: one row is copied, so that a block has no layers and 1024 columns; else a tile spans all layers.

    A program repeats the sum over `partials` blocks, so it writes up to 8 blocks of columns while enough programs
    remain. A tile of 4096 elements over 128 threads instead of 256 spilled on sm_100.
    """
    block_layers = power_of_two(layers)
    block_width = min(1024, power_of_two(width)) if select else min(max(TILE // block_layers, 16), power_of_two(width))
    steps = 8
    while steps > 1 and (select or rows * blocks(width, block_width * steps) < ENOUGH_PROGRAMS):
        steps //= 2
    return OutputConfig(
        block_layers=block_layers,
        block_partials=min(power_of_two(partials), max(TILE // block_layers, 1)),
        block_width=block_width,
        steps=steps,
        width_blocks=max(blocks(width, block_width * steps), 1),
        num_warps=(128 if select or width == 1 else MOST_THREADS) // warp_size,
    )
