"""Where the ops meet Triton.

`optional` imports it or does without, `recording` writes down what launchers do, `launching` does it and prepares it,
`heuristics` has what their choices of sizes share.
"""

from cc_kernels.launch.heuristics import (
    MEMORY_ACCESS_BYTES,
    RowConfig,
    blocks,
    constants,
    power_of_two,
    row_config,
    row_stride,
    unit_stride,
)
from cc_kernels.launch.launching import Prepared, launch, prepared, warmup
from cc_kernels.launch.optional import HAS_TRITON, INTERPRETED, arithmetic_dtype, jit, tl, triton
from cc_kernels.launch.recording import (
    H100,
    Gpu,
    Launch,
    empty,
    gpu,
    gpu_of,
    record_launches,
    recorded,
    warp_size,
    written,
)

__all__ = [
    "H100",
    "HAS_TRITON",
    "INTERPRETED",
    "MEMORY_ACCESS_BYTES",
    "Gpu",
    "Launch",
    "Prepared",
    "RowConfig",
    "arithmetic_dtype",
    "blocks",
    "constants",
    "empty",
    "gpu",
    "gpu_of",
    "jit",
    "launch",
    "power_of_two",
    "prepared",
    "record_launches",
    "recorded",
    "row_config",
    "row_stride",
    "tl",
    "triton",
    "unit_stride",
    "warmup",
    "warp_size",
    "written",
]
