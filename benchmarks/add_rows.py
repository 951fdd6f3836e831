"""`add_rows` in place: K rows of an activation, whose cost must not depend on its length."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.capture_rows import POOL, row_inputs
from benchmarks.cases import Case, compiled
from cc_kernels import add_rows, reference
from cc_kernels.aot.floors import add_rows_inplace


def _ours(x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    return add_rows(x, rows, values, inplace=True)


def _reference(x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    return reference.add_rows(x, rows, values, inplace=True)


def _expected(x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    return reference.add_rows(x, rows, values)


def cases(device: torch.device, dtype: torch.dtype, smoke: bool) -> Iterator[Case]:
    """Sixteen rows of 4,096 and of 32,768 tokens. The values are zeros, so that repetitions leave `x` as it is."""
    rows, width = (2, 64) if smoke else (16, 4096)
    pool = torch.randn(64 if smoke else POOL, width, device=device, dtype=dtype)
    for tokens in (8,) if smoke else (4096, 32768):

        def inputs(seed: int, tokens: int = tokens) -> tuple[Tensor, ...]:
            return *row_inputs(seed, pool, tokens, rows), pool.new_zeros(rows, width)

        implementations = {"cc_kernels": _ours, "eager": _reference, "torch.compile": compiled(_reference)}
        cost = add_rows_inplace(rows, width, dtype.itemsize)
        yield Case(f"add_rows {rows} of {tokens}x{width} in place", inputs, _expected, implementations, cost)
