"""`capture_rows`: K rows of an activation, whose cost must not depend on its length."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from benchmarks.ops.cases import Case, backward_only, compiled, forward_and_backward
from cc_kernels import capture_rows, reference
from cc_kernels.aot.floors import Cost, capture_rows_forward
from cc_kernels.aot.shapes import ModelShape

POOL = 2**16  # rows of the tensor that all inputs are parts of, so that many of them fit
ROWS = 16


@lru_cache(maxsize=1)
def pool_of(length: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The tensor that inputs are parts of; made when the first of them is."""
    return torch.randn(length, width, device=device, dtype=dtype)


def row_inputs(seed: int, pool: Tensor, tokens: int, rows: int) -> tuple[Tensor, Tensor]:
    """`tokens` rows of the pool and `rows` distinct indices, others for each seed."""
    first = seed * tokens % (len(pool) - tokens + 1)
    spacing = tokens // rows
    return pool[first : first + tokens], torch.arange(rows, device=pool.device) * spacing + seed % spacing


def _cases(
    tokens: int, rows: int, width: int, pool: int, device: torch.device, dtype: torch.dtype, gradient: bool
) -> Iterator[Case]:
    """Forward; with `gradient` also the backward, which writes a gradient for every token, and both."""

    def inputs(seed: int, gradient: bool = False) -> tuple[Tensor, ...]:
        x, indices = row_inputs(seed, pool_of(pool, width, device, dtype), tokens, rows)
        return x.detach().requires_grad_(gradient), indices

    def differentiable(seed: int) -> tuple[Tensor, ...]:
        return inputs(seed, gradient=True)

    implementations = {"cc_kernels": capture_rows, "eager": reference.capture_rows}
    implementations["torch.compile"] = compiled(reference.capture_rows)
    name = f"capture_rows {rows} of {tokens}x{width}"
    cost = capture_rows_forward(rows, width, dtype.itemsize)
    yield Case(name, inputs, reference.capture_rows, implementations, cost)
    if gradient:
        written = Cost((tokens + rows) * width * dtype.itemsize, 0)
        alone = {label: backward_only(op) for label, op in implementations.items()}
        yield Case(f"{name} backward", differentiable, backward_only(reference.capture_rows), {}, written, alone)
        both = {label: forward_and_backward(op) for label, op in implementations.items()}
        total = Cost(cost.bytes + written.bytes, 0)
        expected = forward_and_backward(reference.capture_rows)
        yield Case(f"{name} forward+backward", differentiable, expected, both, total)


def cases(device: torch.device, dtype: torch.dtype, smoke: bool) -> Iterator[Case]:
    """Sixteen rows of 4,096 and of 32,768 tokens."""
    rows, width = (2, 64) if smoke else (ROWS, 4096)
    for tokens in (8,) if smoke else (4096, 32768):
        yield from _cases(tokens, rows, width, 64 if smoke else POOL, device, dtype, gradient=False)


def model_cases(model: ModelShape, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """One registered model: sixteen rows of 4,096 tokens on a GPU, of 512 on a CPU."""
    tokens, pool = (4096, POOL) if device.type == "cuda" else (512, 1024)
    yield from _cases(tokens, ROWS, model.hidden, pool, device, dtype, gradient=True)
