"""`capture_rows`: K rows of an activation, whose cost must not depend on its length."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.cases import Case, compiled
from cc_kernels import capture_rows, reference
from cc_kernels.aot.floors import capture_rows_forward

POOL = 2**16  # rows of the tensor that all inputs are parts of, so that many of them fit


def row_inputs(seed: int, pool: Tensor, tokens: int, rows: int) -> tuple[Tensor, Tensor]:
    """`tokens` rows of the pool and `rows` distinct indices, others for each seed."""
    first = seed * tokens % (len(pool) - tokens + 1)
    spacing = tokens // rows
    return pool[first : first + tokens], torch.arange(rows, device=pool.device) * spacing + seed % spacing


def cases(device: torch.device, dtype: torch.dtype, smoke: bool) -> Iterator[Case]:
    """Sixteen rows of 4,096 and of 32,768 tokens."""
    rows, width = (2, 64) if smoke else (16, 4096)
    pool = torch.randn(64 if smoke else POOL, width, device=device, dtype=dtype)
    for tokens in (8,) if smoke else (4096, 32768):

        def inputs(seed: int, tokens: int = tokens) -> tuple[Tensor, ...]:
            return row_inputs(seed, pool, tokens, rows)

        implementations = {
            "cc_kernels": capture_rows,
            "eager": reference.capture_rows,
            "torch.compile": compiled(reference.capture_rows),
        }
        cost = capture_rows_forward(rows, width, dtype.itemsize)
        yield Case(f"capture_rows {rows} of {tokens}x{width}", inputs, reference.capture_rows, implementations, cost)
