"""`capture_add_rows_`: `bank[k] = x[captured[k]]`, then `x[added[k]] += update[k]`; a row below 0 is skipped.

This is a layer's part of serving: of some requests the row is captured in this step, to others the update is added, and
most rows are −1. One launch does both in place, so that a captured CUDA graph can repeat it with other contents.

Shapes: x `(N, d)`, bank `(K, d)`, captured, added `(K,)`, update `(K, d)`. dtypes: any floating-point x and bank, the
same; update that one or fp32; int64 or int32 rows, both the same. The sum is taken in fp32 and rounded once.
Bytes moved: 2·d elements for each captured row, 3·d for each added one, and the row numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cc_kernels import reference
from cc_kernels.backend import register_triton
from cc_kernels.checks import (
    check_device,
    check_float,
    check_inference,
    check_own_memory,
    check_rows,
    check_same,
    check_shape,
)
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
from cc_kernels.library import define
from cc_kernels.op import Op


@jit(do_not_specialize=["blocks_per_row"])
def _capture_add_rows_fwd_kernel(
    x_ptr,
    bank_ptr,
    captured_ptr,
    added_ptr,
    update_ptr,
    x_stride,
    bank_stride,
    captured_stride,
    added_stride,
    update_stride,
    width,
    blocks_per_row,
    ARITHMETIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    k = (program // blocks_per_row).to(tl.int64)
    captured = tl.load(captured_ptr + k * captured_stride).to(tl.int64)
    added = tl.load(added_ptr + k * added_stride).to(tl.int64)
    columns = (program % blocks_per_row) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = columns < width
    if captured >= 0:
        values = tl.load(x_ptr + captured * x_stride + columns, mask=inside, other=0.0)
        tl.store(bank_ptr + k * bank_stride + columns, values, mask=inside)
    if added >= 0:
        tl.debug_barrier()  # it may be the row just captured, which other threads may still read
        target = x_ptr + added * x_stride + columns
        values = tl.load(update_ptr + k * update_stride + columns, mask=inside, other=0.0).to(ARITHMETIC)
        total = tl.load(target, mask=inside, other=0.0).to(ARITHMETIC) + values
        tl.store(target, total.to(x_ptr.dtype.element_ty), mask=inside)


@prepared
def _forward(x: Tensor, bank: Tensor, captured: Tensor, added: Tensor, update: Tensor) -> None:
    (count, width), dense, rows, values = bank.shape, unit_stride(x), unit_stride(bank), unit_stride(update)
    if x.shape[0] == 0:  # only rows below 0 can be asked of a tensor without rows
        return
    config = row_config(width, x.element_size(), warp_size())
    blocks_per_row = blocks(width, config.block)
    launch(
        _capture_add_rows_fwd_kernel, (count * blocks_per_row,),
        x_ptr=dense, bank_ptr=rows, captured_ptr=captured, added_ptr=added, update_ptr=values,
        x_stride=dense.stride(0), bank_stride=rows.stride(0), captured_stride=captured.stride(0),
        added_stride=added.stride(0), update_stride=values.stride(0),
        width=width, blocks_per_row=blocks_per_row, ARITHMETIC=arithmetic_dtype(x.dtype), **constants(config),
    )  # fmt: skip
    for given, changed in ((x, dense), (bank, rows)):
        if changed is not given:
            given.copy_(changed)


@prepared
def _eager(x: Tensor, bank: Tensor, captured: Tensor, added: Tensor, update: Tensor) -> None:
    """`_forward` past the dispatcher, which would tell autograd what was written."""
    _forward(x, bank, captured, added, update)
    written(x)
    written(bank)


if HAS_TRITON:
    _capture_add_rows = define(
        "capture_add_rows_(Tensor(a!) x, Tensor(b!) bank, Tensor captured, Tensor added, Tensor update) -> ()",
        _forward,
        fake=lambda *_: None,
        reference=reference.capture_add_rows_,
    )
    register_triton("capture_add_rows_", _capture_add_rows)


def _check(x: Tensor, bank: Tensor, captured: Tensor, added: Tensor, update: Tensor) -> None:
    check_float("x", x, ndim=2)
    check_float("bank", bank, ndim=2)
    check_float("update", update, ndim=2)
    check_shape("bank", bank, (bank.shape[0], x.shape[1]), "(K, d)")
    check_shape("update", update, bank.shape, "of bank")
    check_same("bank", bank, "x", x)
    check_device("update", update, "x", x)
    if update.dtype not in (x.dtype, torch.float32):
        raise TypeError(f"update: expected the dtype of x, {x.dtype}, or torch.float32, got {update.dtype}")
    check_rows("captured", captured, x, count=bank.shape[0])
    check_rows("added", added, x, count=bank.shape[0])
    check_same("added", added, "captured", captured)
    check_own_memory("x", x)
    check_own_memory("bank", bank)
    check_inference("capture_add_rows_", x=x, bank=bank, update=update)


_op = Op("capture_add_rows_", _check, reference.capture_add_rows_, _eager, inference=True)


def capture_add_rows_(x: Tensor, bank: Tensor, captured: Tensor, added: Tensor, update: Tensor) -> None:
    """Copy rows of an activation into a bank and add others to it, both in place; inference only.

        bank[k] = x[captured[k]] for every k whose captured[k] is not below 0
        x[added[k]] += update[k] for every k whose added[k] is not below 0

    The order within one k is this one: its capture reads x before its add. Between different k there is none, so one
    row must not be captured by one k and added to by another in the same call. Memory that is passed twice, for example
    a bank that is a part of x, has no defined result either.

    The call works in a captured CUDA graph, between whose replays only contents may change. Nothing synchronises, and
    nothing is allocated where the last axes of x, bank and update are dense; what is not dense is copied.

    Args:
        x: `(N, d)`, floating point; changed in place.
        bank: `(K, d)`, the dtype of `x`; written in place. A row with nothing to capture keeps its values.
        captured: `(K,)`, int64 or int32, each below N; below 0 skips. A row may be captured more than once.
        added: `(K,)`, the dtype of `captured`, each below N, distinct where not below 0; below 0 skips, and then
            `update[k]` is not read. Neither range nor distinctness is checked, because that would synchronise.
        update: `(K, d)`, the dtype of `x` or fp32. The sum is rounded once; `add_rows` rounds its values first, so that
            the two give the same bits where `update` has the dtype of `x`.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: wrong shape, different devices, or rows of `x` or `bank` that share memory.
        RuntimeError: a gradient is asked.

    Source: the capture and injection of feed-forward activations, CC-Tuning sections 3.1 and 3.2.

    Example:
        >>> import torch
        >>> x, bank = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 2)
        >>> capture_add_rows_(x, bank, torch.tensor([1, -1]), torch.tensor([-1, 0]), torch.ones(2, 2))
        >>> x, bank
        (tensor([[2., 3.],
                [3., 4.]]), tensor([[3., 4.],
                [0., 0.]]))
    """
    _op(x, bank, captured, added, update)


__all__ = ["capture_add_rows_"]
