"""Block sizes of the kernels behind `decide` and `connect`: pure functions of the shape, tested on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

from cc_kernels.launch import MEMORY_ACCESS_BYTES, blocks, power_of_two

TILE = 4096  # elements of one (layers, columns) tile: 16 fp32 registers per thread at 256 threads
MOST_THREADS = 256
MOST_PARTIALS = 64  # column blocks whose partial sums one program of the second launch adds up
ENOUGH_PROGRAMS = 256  # about two for each of the 132 processors of an H200


@dataclass(frozen=True)
class BankConfig:
    """The first launches, which read the bank: one program per row and block of columns."""

    block_layers: int
    block_width: int
    width_blocks: int
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


def bank_config(
    layers: int, rows: int, width: int, element_size: int, warp_size: int, per_layer: bool = False
) -> BankConfig:
    """Columns in blocks of 64 to 256, as wide as leaves enough programs, and at most 64 blocks.

    A program keeps a tile of 4096 elements in flight, 8 KB in bf16; 4 programs per processor are more than the 25 KB
    that Little's law asks of an H200. Wider blocks make fewer partial sums for the second launch. With 4 warps instead
    of 8, one kernel spilled on sm_90 and the folded one took 254 registers. A folded matrix per layer (`per_layer`)
    keeps a tile of sums beside the one it loads; with whole tiles it spilled on sm_80. Not yet measured on a GPU.
    """
    block_width = 256
    while block_width > 64 and rows * blocks(width, block_width) < ENOUGH_PROGRAMS:
        block_width //= 2
    block_width = max(block_width, power_of_two(blocks(width, MOST_PARTIALS)))
    tile = TILE // 2 if per_layer else TILE
    block_layers = min(power_of_two(layers), max(tile // block_width, 1))
    accesses = block_layers * block_width * element_size // MEMORY_ACCESS_BYTES
    return BankConfig(
        block_layers=block_layers,
        block_width=block_width,
        width_blocks=blocks(width, block_width),
        num_warps=min(max(accesses // warp_size, 1), MOST_THREADS // warp_size),
    )


def output_config(layers: int, rows: int, width: int, partials: int, select: bool, warp_size: int) -> OutputConfig:
    """`select`: one row is copied, so that a block has no layers and 1024 columns; else a tile spans all layers.

    A program repeats the sum over `partials` blocks, so it writes up to 8 blocks of columns while enough programs
    remain. A tile of 4096 elements over 128 threads instead of 256 spilled on sm_100. Not yet measured on a GPU.
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
        width_blocks=blocks(width, block_width * steps),
        num_warps=(128 if select else MOST_THREADS) // warp_size,
    )
