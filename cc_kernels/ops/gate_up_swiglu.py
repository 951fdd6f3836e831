"""`gate_up_swiglu`: `out = silu(x W_gᵀ) * (x W_uᵀ)`, the first half of a feed-forward block for a few tokens.

Shapes: x `(K, d)`, w_gate, w_up `(I, d)`, out `(K, I)`. dtypes: one for all. On 16-bit inputs: fp32 accumulation, both
projections rounded to the dtype as library matmuls round them, fp32 arithmetic on those and one rounding. Bytes moved:
both weights once for each 64 rows, x once, the result once; gate and up never leave the registers. One launch.
"""

from __future__ import annotations

from torch import Tensor

from cc_kernels import reference
from cc_kernels.backend import register_triton
from cc_kernels.checks import check_float, check_inference, check_same, check_shape
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
from cc_kernels.ops.stream_config import gate_up_config

# Rows up to which a call runs the kernel. On an H100, I=14336, d=4096, bf16, graph replay: 85.1 µs for 1 row, 85.7 for
# 16, 90.7 for 32 and 91.0 for 64, beside 89.4, 91.2, 93.8 and 96.5 of one concatenated matmul and `swiglu`. With more
# the weights would be read again. (benchmarks/results/h100/gpu_check-2.json)
MOST_ROWS = 64


@jit(do_not_specialize=["rows"])
def _gate_up_swiglu_fwd_kernel(
    x_ptr,
    gate_ptr,
    up_ptr,
    out_ptr,
    x_stride,
    gate_stride,
    up_stride,
    rows,
    inner,
    ARITHMETIC: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    columns = tl.program_id(0).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)  # [BC]
    k = tl.program_id(1).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)  # [BK]
    here, inside = k < rows, columns < inner
    gate = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), ARITHMETIC)
    up = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), ARITHMETIC)
    depth = tl.arange(0, BLOCK_DEPTH)  # [BD]
    x_at = x_ptr + k[:, None] * x_stride + depth[None, :]
    gate_at = gate_ptr + columns[None, :] * gate_stride + depth[:, None]
    up_at = up_ptr + columns[None, :] * up_stride + depth[:, None]
    for start in range(0, WIDTH, BLOCK_DEPTH):
        below = depth < WIDTH - start
        mask = below[:, None] & inside[None, :]
        x = tl.load(x_at + start, mask=here[:, None] & below[None, :], other=0.0)
        w_gate = tl.load(gate_at + start, mask=mask, other=0.0)  # [BD, BC]
        gate = tl.dot(x, w_gate, gate, input_precision="ieee", out_dtype=ARITHMETIC)
        w_up = tl.load(up_at + start, mask=mask, other=0.0)
        up = tl.dot(x, w_up, up, input_precision="ieee", out_dtype=ARITHMETIC)
    dtype = out_ptr.dtype.element_ty
    gate, up = gate.to(dtype).to(ARITHMETIC), up.to(dtype).to(ARITHMETIC)
    out = gate / (1 + tl.exp(-gate)) * up
    out_at = out_ptr + k[:, None] * inner + columns[None, :]
    tl.store(out_at, out.to(dtype), mask=here[:, None] & inside[None, :])


@prepared
def _forward(x: Tensor, w_gate: Tensor, w_up: Tensor) -> Tensor:
    (rows, width), inner = x.shape, w_gate.shape[0]
    out = empty(x, (rows, inner))
    if out.numel() == 0:
        return out
    x, w_gate, w_up = unit_stride(x), unit_stride(w_gate), unit_stride(w_up)
    config = gate_up_config(rows, inner, x.element_size(), gpu())
    launch(
        _gate_up_swiglu_fwd_kernel, (blocks(inner, config.block_columns), blocks(rows, config.block_rows)),
        x_ptr=x, gate_ptr=w_gate, up_ptr=w_up, out_ptr=out,
        x_stride=x.stride(0), gate_stride=w_gate.stride(0), up_stride=w_up.stride(0),
        rows=rows, inner=inner, ARITHMETIC=arithmetic_dtype(x.dtype), WIDTH=width, **constants(config),
    )  # fmt: skip
    return out


if HAS_TRITON:
    _gate_up_swiglu = define(
        "gate_up_swiglu(Tensor x, Tensor w_gate, Tensor w_up) -> Tensor",
        _forward,
        fake=lambda x, w_gate, w_up: x.new_empty((x.shape[0], w_gate.shape[0])),
        reference=reference.gate_up_swiglu,
    )
    register_triton("gate_up_swiglu", _gate_up_swiglu)


def _check(x: Tensor, w_gate: Tensor, w_up: Tensor) -> None:
    check_float("x", x, ndim=2)
    check_float("w_gate", w_gate, ndim=2)
    check_float("w_up", w_up, ndim=2)
    check_shape("w_gate", w_gate, (w_gate.shape[0], x.shape[1]), "(I, d)")
    check_shape("w_up", w_up, w_gate.shape, "of w_gate")
    check_same("w_gate", w_gate, "x", x)
    check_same("w_up", w_up, "x", x)
    check_inference("gate_up_swiglu", x=x, w_gate=w_gate, w_up=w_up)


def _pays(x: Tensor, w_gate: Tensor, w_up: Tensor) -> bool:
    return x.shape[0] <= MOST_ROWS


_op = Op("gate_up_swiglu", _check, reference.gate_up_swiglu, _forward, _pays, inference=True)


def gate_up_swiglu(x: Tensor, w_gate: Tensor, w_up: Tensor) -> Tensor:
    """Gate and up projections with SwiGLU, `silu(x W_gᵀ) * (x W_uᵀ)`; inference only.

    The kernel is for a few rows: with more than `MOST_ROWS` the `auto` backend runs two library matmuls and the
    elementwise part after them, on a GPU too.

    Args:
        x: `(K, d)`, floating point.
        w_gate: `(I, d)`, the dtype of `x`; the weight of an `nn.Linear` without bias.
        w_up: `(I, d)`, the dtype of `x`.

    Returns:
        `(K, I)`, the dtype of `x`.

    Raises:
        TypeError: an argument is no floating-point tensor, or the dtypes differ.
        ValueError: wrong shape, or different devices.
        RuntimeError: a gradient is asked.

    Source: as `swiglu`.

    Example:
        >>> import torch
        >>> gate_up_swiglu(torch.ones(1, 2), torch.ones(3, 2), torch.ones(3, 2)).shape
        torch.Size([1, 3])
    """
    return _op(x, w_gate, w_up)


__all__ = ["gate_up_swiglu"]
