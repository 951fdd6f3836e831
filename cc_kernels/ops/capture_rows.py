"""`capture_rows`: `out[k] = x[rows[k]]`, a zero row where `rows[k]` is −1.

    ∂x[n] = Σ_{k: rows[k] = n} ∂out[k]

Shapes: x `(N, d)`, rows `(K,)`, out `(K, d)`. dtypes: any floating-point x, int64 or int32 rows; values are copied.
Bytes moved: forward 2·K·d elements and the indices; backward N·d (zeros) and 2·K·d more.

`capture_rows_through` also hands `x` on, and therefore sees the gradient that arrives for it: its backward writes that
gradient with the captured rows added, 2·N·d elements, where autograd would fill zeros and add them, 4·N·d.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cc_kernels import reference
from cc_kernels.backend import register_triton
from cc_kernels.checks import check_float, check_rows
from cc_kernels.launch import (
    HAS_TRITON,
    arithmetic_dtype,
    blocks,
    constants,
    empty,
    jit,
    launch,
    prepared,
    row_config,
    tl,
    unit_stride,
    warp_size,
)
from cc_kernels.library import define, is_transformed
from cc_kernels.op import Op


@jit(do_not_specialize=["blocks_per_row"])
def _capture_rows_fwd_kernel(
    x_ptr, rows_ptr, out_ptr, x_stride, rows_stride, out_stride, width, blocks_per_row, BLOCK: tl.constexpr
):
    program = tl.program_id(0)
    k = (program // blocks_per_row).to(tl.int64)
    start = (program % blocks_per_row) * BLOCK
    columns = start + tl.arange(0, BLOCK)  # [BLOCK]
    row = tl.load(rows_ptr + k * rows_stride).to(tl.int64)
    readable = tl.where(row >= 0, width, 0)
    values = tl.load(x_ptr + row * x_stride + columns, mask=columns < readable, other=0.0)
    tl.store(out_ptr + k * out_stride + columns, values, mask=columns < width)


@jit(do_not_specialize=["count", "blocks_per_row"])
def _capture_rows_bwd_kernel(
    grad_ptr,
    rows_ptr,
    out_ptr,
    grad_stride,
    rows_stride,
    out_stride,
    count,
    width,
    blocks_per_row,
    ARITHMETIC: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """`out[rows[k]] += Σ grad[j]` over the equal indices, by the program of the first of them: no atomics."""
    program = tl.program_id(0)
    k = (program // blocks_per_row).to(tl.int64)
    start = (program % blocks_per_row) * BLOCK
    columns = start + tl.arange(0, BLOCK)  # [BLOCK]
    inside = columns < width
    row = tl.load(rows_ptr + k * rows_stride).to(tl.int64)
    earlier = tl.zeros((), tl.int32)
    first = 0
    while first < k:
        others = first + tl.arange(0, BLOCK_ROWS).to(tl.int64)  # [BLOCK_ROWS]
        other_rows = tl.load(rows_ptr + others * rows_stride, mask=others < k, other=-1)
        earlier += tl.sum((other_rows == row).to(tl.int32), axis=0)
        first += BLOCK_ROWS
    if (row >= 0) & (earlier == 0):
        total = tl.load(out_ptr + row * out_stride + columns, mask=inside, other=0.0).to(ARITHMETIC)
        j = k
        while j < count:
            readable = tl.where(tl.load(rows_ptr + j * rows_stride) == row, width, 0)
            total += tl.load(grad_ptr + j * grad_stride + columns, mask=columns < readable, other=0.0).to(ARITHMETIC)
            j += 1
        tl.store(out_ptr + row * out_stride + columns, total.to(out_ptr.dtype.element_ty), mask=inside)


@prepared
def _forward(x: Tensor, rows: Tensor) -> Tensor:
    count, width = rows.shape[0], x.shape[1]
    if x.shape[0] == 0:  # only −1 can be asked of a tensor without rows
        return x.new_zeros(count, width)
    out = empty(x, (count, width))
    x = unit_stride(x)
    config = row_config(width, x.element_size(), warp_size())
    blocks_per_row = blocks(width, config.block)
    launch(
        _capture_rows_fwd_kernel, (count * blocks_per_row,),
        x_ptr=x, rows_ptr=rows, out_ptr=out,
        x_stride=x.stride(0), rows_stride=rows.stride(0), out_stride=out.stride(0),
        width=width, blocks_per_row=blocks_per_row, **constants(config),
    )  # fmt: skip
    return out


@prepared
def _without_gradients(x: Tensor, rows: Tensor, assume_valid: bool = False) -> Tensor:
    return _forward(x, rows)


@prepared
def _through_without_gradients(x: Tensor, rows: Tensor, assume_valid: bool = False) -> tuple[Tensor, Tensor]:
    return x, _forward(x, rows)


@prepared
def _add_gradient(grad: Tensor, rows: Tensor, out: Tensor) -> None:
    """Add the rows of `grad` to those of `out` that they were captured from."""
    count, width = grad.shape
    grad = unit_stride(grad)
    config = row_config(width, grad.element_size(), warp_size())
    blocks_per_row = blocks(width, config.block)
    launch(
        _capture_rows_bwd_kernel, (count * blocks_per_row,),
        grad_ptr=grad, rows_ptr=rows, out_ptr=out,
        grad_stride=grad.stride(0), rows_stride=rows.stride(0), out_stride=out.stride(0),
        count=count, width=width, blocks_per_row=blocks_per_row,
        ARITHMETIC=arithmetic_dtype(grad.dtype), BLOCK_ROWS=64, **constants(config),
    )  # fmt: skip


def _backward(grad: Tensor, rows: Tensor, base: Tensor | None, length: int) -> Tensor:
    """`base` (zeros of `length` rows when None) plus the rows of `grad`; a new tensor."""
    if base is None:
        out = grad.new_zeros(length, grad.shape[1])
    else:
        out = base.clone(memory_format=torch.contiguous_format)
    if length > 0:
        _add_gradient(grad, rows, out)
    return out


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    x, rows = inputs
    ctx.save_for_backward(rows)
    ctx.length = x.shape[0]


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (rows,) = ctx.saved_tensors
    return _backward_op(grad, rows, None, ctx.length), None


class _CaptureThrough(torch.autograd.Function):
    """Returns `x` and its captured rows. An operator may not return its argument, an autograd function may."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows)
        return x.view_as(x), _capture_op(x, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        grad_x, grad_rows = grads
        return _backward_op(grad_rows, rows, grad_x, grad_x.shape[0]), None


def capture_rows_triton(x: Tensor, rows: Tensor, assume_valid: bool = False) -> Tensor:
    """`capture_rows` by its kernel, which tests for −1 in a mask that it needs anyway, `assume_valid` or not."""
    return _capture_op(x, rows)


def _capture_through_triton(x: Tensor, rows: Tensor, assume_valid: bool = False) -> tuple[Tensor, Tensor]:
    if is_transformed():  # autograd adds the two gradients itself
        return x, _capture_op(x, rows)
    return _CaptureThrough.apply(x, rows)


if HAS_TRITON:
    _backward_op = define(
        "capture_rows_backward(Tensor grad, Tensor rows, Tensor? base, SymInt length) -> Tensor",
        _backward,
        fake=lambda grad, rows, base, length: grad.new_empty(length, grad.shape[1]),
        reference=reference.capture_rows_backward,
    )
    _capture_op = define(
        "capture_rows(Tensor x, Tensor rows) -> Tensor",
        _forward,
        fake=lambda x, rows: x.new_empty(rows.shape[0], x.shape[1]),
        reference=reference.capture_rows,
        backward=_autograd,
        save=_save,
    )
    register_triton("capture_rows", capture_rows_triton)
    register_triton("capture_rows_through", _capture_through_triton)


def _check(x: Tensor, rows: Tensor, assume_valid: bool) -> None:
    check_float("x", x, ndim=2)
    check_rows("rows", rows, x)


_op = Op("capture_rows", _check, reference.capture_rows, _without_gradients)
_through_op = Op("capture_rows_through", _check, reference.capture_rows_through, _through_without_gradients)


def capture_rows(x: Tensor, rows: Tensor, assume_valid: bool = False) -> Tensor:
    """Copy K rows of an activation; differentiable in `x`.

        out[k] = x[rows[k]], a zero row where rows[k] is −1
        ∂x[n] = Σ_{k: rows[k] = n} ∂out[k]

    Args:
        x: `(N, d)`, floating point.
        rows: `(K,)`, int64 or int32, each in [−1, N). A −1 gives a zero row, whose gradient is zero. The range is not
            checked, because that would synchronise with the device.
        assume_valid: the caller knows that no index is −1, so that the test for it is left out.

    Returns:
        `(K, d)`, the dtype of `x`.

    Raises:
        TypeError: `x` is no floating-point tensor, or `rows` no int64 or int32 tensor.
        ValueError: wrong number of dimensions, or different devices.

    Source: the capture of feed-forward activations, CC-Tuning section 3.1.

    Example:
        >>> import torch
        >>> capture_rows(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, -1]))
        tensor([[3., 4.],
                [0., 0.]])
    """
    return _op(x, rows, assume_valid)


def capture_rows_through(x: Tensor, rows: Tensor, assume_valid: bool = False) -> tuple[Tensor, Tensor]:
    """Hand `x` on and copy K of its rows; differentiable in `x`.

        same = x,  out[k] = x[rows[k]], a zero row where rows[k] is −1
        ∂x[n] = ∂same[n] + Σ_{k: rows[k] = n} ∂out[k]

    Use `same` in the place of `x` from here on, and do not write to it. The kernel's backward then gets both gradients
    together and writes their sum in one pass, where autograd would fill a tensor with zeros and add it.

    Args:
        x: `(N, d)`, floating point.
        rows: `(K,)`, int64 or int32, each in [−1, N), as in `capture_rows`; not checked.
        assume_valid: the caller knows that no index is −1, so that the test for it is left out.

    Returns:
        same `(N, d)`, which is `x` or a view of it, and out `(K, d)`, a copy; both have the dtype of `x`.

    Raises:
        TypeError: `x` is no floating-point tensor, or `rows` no int64 or int32 tensor.
        ValueError: wrong number of dimensions, or different devices.

    Source: the capture of feed-forward activations, CC-Tuning section 3.1.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
        >>> same, row = capture_rows_through(x, torch.tensor([1]))
        >>> row.detach()
        tensor([[3., 4.]])
        >>> (same.sum() + 10 * row.sum()).backward()
        >>> x.grad
        tensor([[ 1.,  1.],
                [11., 11.]])
    """
    return _through_op(x, rows, assume_valid)


__all__ = ["capture_rows", "capture_rows_through"]
