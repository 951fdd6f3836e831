"""`capture_add_rows_`: a step of serving, in which some requests are captured, some added to, and most do nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.ops.capture_rows import POOL, ROWS, pool_of, row_inputs
from benchmarks.ops.cases import Case, compiled
from cc_kernels import capture_add_rows_, reference
from cc_kernels.aot.floors import capture_add_rows_inplace
from cc_kernels.aot.shapes import ModelShape

REQUESTS = 256  # rows of the bank: as many requests as a server holds at once


def _written(op: Callable[..., None]) -> Callable[..., tuple[Tensor, Tensor]]:
    """`op` with what it wrote as its results."""

    def run(x: Tensor, bank: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        op(x, bank, *rest)
        return x, bank

    return run


def _expected(x: Tensor, bank: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    return _written(reference.capture_add_rows_)(x.clone(), bank.clone(), *rest)


def _cases(
    tokens: int, requests: int, busy: int, width: int, pool: int, device: torch.device, dtype: torch.dtype
) -> Iterator[Case]:
    """`busy` requests are captured and as many added to, with updates of zero: repetitions leave `x` as it is."""

    def inputs(seed: int) -> tuple[Any, ...]:
        whole = pool_of(pool, width, device, dtype)
        x, rows = row_inputs(seed, whole, tokens, 2 * busy)
        captured, added = torch.full((2, requests), -1, device=device)
        captured[:busy], added[busy : 2 * busy] = rows[:busy], rows[busy:]
        return x, whole.new_zeros(requests, width), captured, added, whole.new_zeros(requests, width)

    ours, eager = _written(capture_add_rows_), _written(reference.capture_add_rows_)
    implementations = {"cc_kernels": ours, "eager": eager, "torch.compile": compiled(eager)}
    name = f"capture_add_rows_ {busy}+{busy} of {requests}, {tokens}x{width}"
    yield Case(name, inputs, _expected, implementations, capture_add_rows_inplace(busy, busy, width, dtype.itemsize))


def cases(device: torch.device, dtype: torch.dtype, smoke: bool) -> Iterator[Case]:
    """Two and sixteen requests of 256 captured, and as many added to."""
    for busy in (1,) if smoke else (2, ROWS):
        requests, tokens, width, pool = (3, 8, 64, 64) if smoke else (REQUESTS, 4096, 4096, POOL)
        yield from _cases(tokens, requests, busy, width, pool, device, dtype)


def model_cases(model: ModelShape, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """One registered model: sixteen requests of 256; 4,096 tokens on a GPU, 512 on a CPU."""
    tokens, pool = (4096, POOL) if device.type == "cuda" else (512, 1024)
    yield from _cases(tokens, REQUESTS, ROWS, model.hidden, pool, device, dtype)
