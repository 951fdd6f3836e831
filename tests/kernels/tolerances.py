"""The tolerances of the kernel tests, in one table.

Rule: the largest error against an fp64 computation is at most twice that of the same formula in plain PyTorch in the
dtype under test, plus `ATOL` times the largest value of the exact result (at least 1).
"""

from __future__ import annotations

import torch

FACTOR = 2.0
ATOL = {
    torch.float64: 1e-13,  # sums in another order
    torch.float32: 5e-7,  # the same; 4 units in the last place of 1
    torch.float16: 2e-5,  # 1/50 of the rounding unit of 1: ties that fall to the other side
    torch.bfloat16: 1.5e-4,  # the same
}
# Interpreted, Triton truncates to bf16 where a GPU rounds to nearest: one unit in the last place of the result.
INTERPRETED_ATOL = {**ATOL, torch.bfloat16: 2.0**-7}
