"""`add_rows`: `out = x`, then `out[rows[k]] += values[k]` for every k whose `rows[k]` is not −1.

    ∂x = ∂out,  ∂values[k] = ∂out[rows[k]], a zero row where `rows[k]` is −1

Shapes: x, out `(N, d)`, rows `(K,)`, values `(K, d)`. dtypes: any floating-point x; `values` are rounded to it.
Bytes moved: in place 3·K·d elements; out of place 2·N·d more for the copy; backward 2·K·d.

An operator that writes to its argument cannot carry autograd. In place, eager autograd is therefore told by an
`autograd.Function` that marks `x` dirty around an operator without a derivative. torch.compile before torch 2.13
ignored such a mark silently (pytorch issue 184113), so that a traced call uses ATen's `index_add_` instead, which the
compiler functionalises and writes in place again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cc_kernels import reference
from cc_kernels.backend import register_triton
from cc_kernels.checks import check_device, check_float, check_own_memory, check_rows, check_shape
from cc_kernels.launch import (
    HAS_TRITON,
    arithmetic_dtype,
    blocks,
    constants,
    jit,
    launch,
    prepared,
    row_config,
    tl,
    unit_stride,
    warp_size,
    written,
)
from cc_kernels.library import define, is_transformed
from cc_kernels.op import Op
from cc_kernels.ops.capture_rows import capture_rows_triton


@jit(do_not_specialize=["blocks_per_row"])
def _add_rows_fwd_kernel(
    x_ptr,
    rows_ptr,
    values_ptr,
    x_stride,
    rows_stride,
    values_stride,
    width,
    blocks_per_row,
    ARITHMETIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    k = (program // blocks_per_row).to(tl.int64)
    start = (program % blocks_per_row) * BLOCK
    columns = start + tl.arange(0, BLOCK)  # [BLOCK]
    row = tl.load(rows_ptr + k * rows_stride).to(tl.int64)
    mask = columns < tl.where(row >= 0, width, 0)
    target = x_ptr + row * x_stride + columns
    values = tl.load(values_ptr + k * values_stride + columns, mask=mask, other=0.0).to(x_ptr.dtype.element_ty)
    total = tl.load(target, mask=mask, other=0.0).to(ARITHMETIC) + values.to(ARITHMETIC)
    tl.store(target, total.to(x_ptr.dtype.element_ty), mask=mask)


@prepared
def _write_rows(x: Tensor, rows: Tensor, values: Tensor) -> None:
    """Add the rows to `x`, whose last axis is dense."""
    count, width = values.shape
    if x.shape[0] == 0:
        return
    values = unit_stride(values)
    config = row_config(width, x.element_size(), warp_size())
    blocks_per_row = blocks(width, config.block)
    launch(
        _add_rows_fwd_kernel, (count * blocks_per_row,),
        x_ptr=x, rows_ptr=rows, values_ptr=values,
        x_stride=x.stride(0), rows_stride=rows.stride(0), values_stride=values.stride(0),
        width=width, blocks_per_row=blocks_per_row, ARITHMETIC=arithmetic_dtype(x.dtype), **constants(config),
    )  # fmt: skip


def _forward(x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    out = x.clone(memory_format=torch.contiguous_format)
    _write_rows(out, rows, values)
    return out


def _forward_inplace(x: Tensor, rows: Tensor, values: Tensor) -> None:
    dense = unit_stride(x)
    _write_rows(dense, rows, values)
    if dense is not x:
        x.copy_(dense)


@prepared
def _without_gradients(x: Tensor, rows: Tensor, values: Tensor, inplace: bool = False) -> Tensor:
    if not inplace:
        return _forward(x, rows, values)
    _forward_inplace(x, rows, values)
    written(x)
    return x


def _gradient_of_values(ctx: Any, grad: Tensor) -> Tensor:
    (rows,) = ctx.saved_tensors
    return capture_rows_triton(grad, rows).to(ctx.values_dtype)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Any) -> None:
    _, rows, values = inputs
    ctx.save_for_backward(rows)
    ctx.values_dtype = values.dtype


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None]:
    return grad, None, _gradient_of_values(ctx, grad) if ctx.needs_input_grad[2] else None


class _AddRowsInplace(torch.autograd.Function):
    """The mutating operator with its derivative; see the module's docstring."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
        _save(ctx, (x, rows, values), None)
        ctx.mark_dirty(x)
        _inplace_op(x, rows, values)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor | None]:
        return _autograd(ctx, grads[0])


def _add_rows_triton(x: Tensor, rows: Tensor, values: Tensor, inplace: bool = False) -> Tensor:
    if not inplace or is_transformed():
        return _add_op(x, rows, values)
    if torch.compiler.is_compiling():
        return reference.add_rows(x, rows, values, inplace=True)
    return _AddRowsInplace.apply(x, rows, values)


def _reference_inplace(x: Tensor, rows: Tensor, values: Tensor) -> None:
    reference.add_rows(x, rows, values, inplace=True)


if HAS_TRITON:
    _add_op = define(
        "add_rows(Tensor x, Tensor rows, Tensor values) -> Tensor",
        _forward,
        fake=lambda x, rows, values: x.new_empty(x.shape),
        reference=reference.add_rows,
        backward=_autograd,
        save=_save,
    )
    _inplace_op = define(
        "add_rows_(Tensor(a!) x, Tensor rows, Tensor values) -> ()",
        _forward_inplace,
        fake=lambda *_: None,
        reference=_reference_inplace,
    )
    register_triton("add_rows", _add_rows_triton)


def _check(x: Tensor, rows: Tensor, values: Tensor, inplace: bool) -> None:
    check_float("x", x, ndim=2)
    check_float("values", values, ndim=2)
    check_rows("rows", rows, x, count=values.shape[0])
    check_shape("values", values, (rows.shape[0], x.shape[1]), "(K, d)")
    check_device("values", values, "x", x)
    if inplace:
        check_own_memory("x", x, " for inplace=True")


_op = Op("add_rows", _check, reference.add_rows, _without_gradients)


def add_rows(x: Tensor, rows: Tensor, values: Tensor, inplace: bool = False) -> Tensor:
    """Add K rows to an activation; differentiable in `x` and `values`.

        out = x, then out[rows[k]] += values[k] for every k whose rows[k] is not −1
        ∂x = ∂out,  ∂values[k] = ∂out[rows[k]], a zero row where rows[k] is −1

    Args:
        x: `(N, d)`, floating point.
        rows: `(K,)`, int64 or int32, each in [−1, N), distinct where not −1. A −1 skips its row: `values[k]` is not
            read, and its gradient is zero. Neither range nor distinctness is checked, because that would synchronise.
        values: `(K, d)`, floating point; rounded to the dtype of `x`. Its gradient has its own dtype.
        inplace: write into `x`, which must be a fresh activation that nothing else reads (a leaf that requires a
            gradient cannot be written to, as always in autograd). The cost then does not depend on N.

    Returns:
        `(N, d)`, the dtype of `x`; `x` itself when `inplace`.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: wrong shape, different devices, or `inplace` on an `x` whose rows share memory.

    Source: the cross-lingual connection, CC-Tuning section 3.2.

    Example:
        >>> import torch
        >>> add_rows(torch.zeros(3, 2), torch.tensor([2, -1]), torch.tensor([[1.0, 2.0], [9.0, 9.0]]))
        tensor([[0., 0.],
                [0., 0.],
                [1., 2.]])
    """
    return _op(x, rows, values, inplace)


__all__ = ["add_rows"]
