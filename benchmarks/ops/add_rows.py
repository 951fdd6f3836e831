"""`add_rows`: K rows of an activation in place, whose cost must not depend on its length; and its backward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.ops.capture_rows import POOL, ROWS, pool_of, row_inputs
from benchmarks.ops.cases import Case, backward_only, compiled, forward_and_backward
from cc_kernels import add_rows, reference
from cc_kernels.aot.floors import Cost, add_rows_inplace
from cc_kernels.aot.shapes import ModelShape


def _ours(x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    return add_rows(x, rows, values, inplace=True)


def _reference(x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    return reference.add_rows(x, rows, values, inplace=True)


def _expected(x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    return reference.add_rows(x, rows, values)


def _cases(
    tokens: int, rows: int, width: int, pool: int, device: torch.device, dtype: torch.dtype, gradient: bool
) -> Iterator[Case]:
    """In place, with values of zero, so that repetitions leave `x` as it is; with `gradient` copying, and backward."""

    def inputs(seed: int) -> tuple[Tensor, ...]:
        whole = pool_of(pool, width, device, dtype)
        return *row_inputs(seed, whole, tokens, rows), whole.new_zeros(rows, width)

    def differentiable(seed: int) -> tuple[Tensor, ...]:
        x, indices, values = inputs(seed)
        return x.detach().requires_grad_(), indices, values.requires_grad_()

    implementations = {"cc_kernels": _ours, "eager": _reference, "torch.compile": compiled(_reference)}
    name = f"add_rows {rows} of {tokens}x{width}"
    cost = add_rows_inplace(rows, width, dtype.itemsize)
    yield Case(f"{name} in place", inputs, _expected, implementations, cost)
    if gradient:  # the gradient of x is the incoming one, those of the values are K rows of it
        gathered = Cost(2 * rows * width * dtype.itemsize, 0)
        out_of_place = {"cc_kernels": add_rows, "eager": _expected, "torch.compile": compiled(_expected)}
        alone = {label: backward_only(op) for label, op in out_of_place.items()}
        yield Case(f"{name} backward", differentiable, backward_only(_expected), {}, gathered, alone)
        both = {label: forward_and_backward(op) for label, op in out_of_place.items()}
        copied = Cost((2 * tokens + 3 * rows) * width * dtype.itemsize, rows * width)
        yield Case(f"{name} forward+backward", differentiable, forward_and_backward(_expected), both, copied)


def cases(device: torch.device, dtype: torch.dtype, smoke: bool) -> Iterator[Case]:
    """Sixteen rows of 4,096 and of 32,768 tokens."""
    rows, width = (2, 64) if smoke else (ROWS, 4096)
    for tokens in (8,) if smoke else (4096, 32768):
        yield from _cases(tokens, rows, width, 64 if smoke else POOL, device, dtype, gradient=False)


def model_cases(model: ModelShape, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """One registered model: sixteen rows of 4,096 tokens on a GPU, of 512 on a CPU."""
    tokens, pool = (4096, POOL) if device.type == "cuda" else (512, 1024)
    yield from _cases(tokens, ROWS, model.hidden, pool, device, dtype, gradient=True)
