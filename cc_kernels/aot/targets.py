"""The GPUs that the kernels are compiled for, their limits, and the occupancy that a kernel's needs allow.

Sources: CUDA C programming guide, table of compute capabilities; AMD Instinct MI300 instruction set (CDNA 3), section
on wavefronts and registers.
"""

from __future__ import annotations

from dataclasses import dataclass

from cc_kernels.launch import Gpu

KIB = 1024


@dataclass(frozen=True)
class Target:
    """One architecture; a "processor" is an NVIDIA streaming multiprocessor or an AMD compute unit."""

    name: str
    backend: str  # as Triton calls it
    arch: int | str
    warp_size: int
    shared_per_block: int  # bytes
    shared_per_processor: int  # bytes
    registers_per_lane: int  # 32-bit registers that the resident warps of one scheduler share, per lane
    register_granularity: int  # per thread
    max_registers: int  # per thread
    schedulers: int  # per processor
    max_warps: int  # per processor
    max_blocks: int  # per processor
    gpu: Gpu  # a GPU with this architecture, as the heuristics see it

    def occupancy(self, registers: int, shared: int, num_warps: int) -> float:
        """Resident warps as a share of the most possible, from registers per thread and shared bytes per block."""
        granularity = self.register_granularity
        rounded = max(-(-registers // granularity) * granularity, granularity)
        warps_by_registers = self.schedulers * (self.registers_per_lane // rounded)
        fits = min(self.max_blocks, self.max_warps // num_warps, warps_by_registers // num_warps)
        if shared:
            fits = min(fits, self.shared_per_processor // shared)
        return fits * num_warps / self.max_warps


def _nvidia(arch: int, shared_per_processor: int, gpu: Gpu) -> Target:
    return Target(
        name=f"sm_{arch}",
        backend="cuda",
        arch=arch,
        warp_size=32,
        shared_per_block=shared_per_processor - KIB,
        shared_per_processor=shared_per_processor,
        registers_per_lane=512,  # 65536 registers / (4 schedulers x 32 lanes)
        register_granularity=8,
        max_registers=255,
        schedulers=4,
        max_warps=64,
        max_blocks=32,
        gpu=gpu,
    )


TARGETS = {
    target.name: target
    for target in (
        _nvidia(80, 164 * KIB, Gpu(32, 108)),
        _nvidia(90, 228 * KIB, Gpu(32, 132)),
        _nvidia(100, 228 * KIB, Gpu(32, 148, in_flight=54 * KIB)),
        Target(
            name="gfx942",
            backend="hip",
            arch="gfx942",
            warp_size=64,
            shared_per_block=64 * KIB,
            shared_per_processor=64 * KIB,
            registers_per_lane=512,
            register_granularity=8,
            max_registers=512,
            schedulers=4,
            max_warps=32,
            max_blocks=32,
            gpu=Gpu(64, 304, in_flight=18 * KIB),
        ),
    )
}
