"""`transform_rows`: `out[k] = values[k] M`, the Transform Matrix applied to the selected rows.

With one matrix per layer, `out[k] = values[k] M[layers[k]]`.

Shapes: values, out `(K, d)`, M `(d, d)` or `(L, d, d)` in row-vector convention, layers `(K,)`. dtypes: one for values
and M; fp32 accumulation on 16-bit inputs and one rounding. Bytes moved: M once for each 64 rows (with `layers`, the d²
elements of one layer for each row), K rows in, K rows out. One launch, no atomics: the same bits at every call.
"""

from __future__ import annotations

from torch import Tensor

from cc_kernels import reference
from cc_kernels.backend import register_triton
from cc_kernels.checks import check_float, check_inference, check_rows, check_same, check_shape
from cc_kernels.launch import (
    HAS_TRITON,
    arithmetic_dtype,
    blocks,
    constants,
    empty,
    gpu,
    jit,
    launch,
    prepared,
    tl,
    unit_stride,
)
from cc_kernels.library import define
from cc_kernels.op import Op
from cc_kernels.ops.stream_config import MOST_BLOCK_ROWS, transform_rows_config

MOST_ROWS = MOST_BLOCK_ROWS  # of a call that the kernel is for: with more, M is read again and a library matmul wins


@jit(do_not_specialize=["rows"])
def _transform_rows_fwd_kernel(
    values_ptr,
    matrix_ptr,
    layers_ptr,
    out_ptr,
    values_stride,
    matrix_layer_stride,
    matrix_row_stride,
    matrix_column_stride,
    rows,
    ARITHMETIC: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    columns = tl.program_id(0).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)  # [BC]
    group = tl.program_id(1).to(tl.int64)
    if layers_ptr is None:
        k = group * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)  # [BK]
        here = k < rows
    else:  # one row with its own matrix: the first of the tile, the others are padding
        k = group + tl.arange(0, BLOCK_ROWS)
        here = tl.arange(0, BLOCK_ROWS) < 1
        matrix_ptr += tl.load(layers_ptr + group).to(tl.int64) * matrix_layer_stride
    inside = columns < WIDTH
    step = tl.full((), BLOCK_DEPTH, tl.int64) * matrix_row_stride
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), ARITHMETIC)
    depth = tl.arange(0, BLOCK_DEPTH).to(tl.int64)  # [BD]
    values_at = values_ptr + k[:, None] * values_stride + depth[None, :]
    matrix_at = matrix_ptr + depth[:, None] * matrix_row_stride + columns[None, :] * matrix_column_stride
    for _ in range(0, WIDTH, BLOCK_DEPTH):
        below = depth < WIDTH
        values = tl.load(values_at, mask=here[:, None] & below[None, :], other=0.0)
        matrix = tl.load(matrix_at, mask=below[:, None] & inside[None, :], other=0.0)
        total = tl.dot(values, matrix, total, input_precision="ieee", out_dtype=ARITHMETIC)
        depth += BLOCK_DEPTH
        values_at += BLOCK_DEPTH
        matrix_at += step
    out_at = out_ptr + k[:, None] * WIDTH + columns[None, :]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=here[:, None] & inside[None, :])


def _dense_axis(matrix: Tensor) -> Tensor:
    """The matrix itself when one of its two axes is dense, else a copy: the kernel reads along either."""
    return matrix if matrix.stride(-2) == 1 else unit_stride(matrix)


@prepared
def _forward(values: Tensor, matrix: Tensor, layers: Tensor | None) -> Tensor:
    rows, width = values.shape
    out = empty(values, (rows, width))
    if out.numel() == 0:
        return out
    values, matrix = unit_stride(values), _dense_axis(matrix)
    tile_rows = rows if layers is None else 1
    config = transform_rows_config(tile_rows, width, values.element_size(), gpu())
    launch(
        _transform_rows_fwd_kernel,
        (blocks(width, config.block_columns), blocks(rows, config.block_rows) if layers is None else rows),
        values_ptr=values, matrix_ptr=matrix, layers_ptr=None if layers is None else layers.contiguous(), out_ptr=out,
        values_stride=values.stride(0), matrix_layer_stride=0 if layers is None else matrix.stride(0),
        matrix_row_stride=matrix.stride(-2), matrix_column_stride=matrix.stride(-1),
        rows=rows, ARITHMETIC=arithmetic_dtype(values.dtype), WIDTH=width, **constants(config),
    )  # fmt: skip
    return out


if HAS_TRITON:
    _transform_rows = define(
        "transform_rows(Tensor values, Tensor matrix, Tensor? layers) -> Tensor",
        _forward,
        fake=lambda values, matrix, layers: values.new_empty(values.shape),
        reference=reference.transform_rows,
    )
    register_triton("transform_rows", _transform_rows)


def _check(values: Tensor, matrix: Tensor, layers: Tensor | None) -> None:
    check_float("values", values, ndim=2)
    check_float("matrix", matrix, ndim=2 if layers is None else 3)
    width = values.shape[1]
    if layers is None:
        check_shape("matrix", matrix, (width, width), "(d, d)")
    else:
        check_shape("matrix", matrix, (matrix.shape[0], width, width), "(L, d, d)")
        check_rows("layers", layers, values, count=values.shape[0], like_name="values")
    check_same("matrix", matrix, "values", values)
    check_inference("transform_rows", values=values, matrix=matrix)


def _pays(values: Tensor, matrix: Tensor, layers: Tensor | None) -> bool:
    return layers is not None or values.shape[0] <= MOST_ROWS


_op = Op("transform_rows", _check, reference.transform_rows, _forward, _pays, inference=True)


def transform_rows(values: Tensor, matrix: Tensor, layers: Tensor | None = None) -> Tensor:
    """Map K activations by the Transform Matrix, `out[k] = values[k] M`; inference only.

    Args:
        values: `(K, d)`, floating point.
        matrix: M `(d, d)` in row-vector convention, or with `layers` one for each layer, `(L, d, d)`; the dtype of
            `values`.
        layers: `(K,)` int64 or int32 in [0, L): which matrix maps each row. Not checked against L, which would need a
            synchronisation; out of range is undefined.

    Returns:
        `(K, d)`, the dtype of `values`.

    Raises:
        TypeError: an argument is no tensor, or of the wrong or a different dtype.
        ValueError: wrong shape, or different devices.
        RuntimeError: a gradient is asked.

    Source: CC-Tuning section 3.3.

    Example:
        >>> import torch
        >>> transform_rows(torch.tensor([[1.0, 2.0]]), 2 * torch.eye(2))
        tensor([[2., 4.]])
        >>> transform_rows(torch.ones(2, 1), torch.tensor([[[3.0]], [[5.0]]]), layers=torch.tensor([1, 0]))
        tensor([[5.],
                [3.]])
    """
    return _op(values, matrix, layers)


__all__ = ["transform_rows"]
