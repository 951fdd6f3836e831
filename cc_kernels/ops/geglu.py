"""`geglu`: `out = gelu(gate) * up`, the feed-forward block of Gemma, with one of two GELUs.

    erf:  gelu(x) = x Φ(x),  Φ(x) = (1 + erf(x / √2)) / 2          gelu'(x) = Φ(x) + x exp(−x²/2) / √(2π)
    tanh: gelu(x) = x σ(z),  z = 2 √(2/π) (x + 0.044715 x³)        gelu'(x) = σ(z) + x σ(z) (1 − σ(z)) z'

    ∂gate = ∂out · up · gelu'(gate)
    ∂up   = ∂out · gelu(gate)

The tanh form is usually written `x (1 + tanh(z/2)) / 2`; the two are equal. Shapes: gate, up, out `(..., I)`. dtypes:
fp16, bf16, fp32 or fp64, one for all; fp32 arithmetic on 16-bit inputs and one rounding. Bytes moved: forward 3·N·I
elements, backward 5·N·I, as `swiglu`, whose block sizes it takes; nothing but the inputs is saved.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cc_kernels import reference
from cc_kernels.backend import register_triton
from cc_kernels.checks import check_float, check_same, check_shape
from cc_kernels.launch import (
    HAS_TRITON,
    arithmetic_dtype,
    blocks,
    constants,
    empty,
    jit,
    launch,
    prepared,
    tl,
    warp_size,
    written,
)
from cc_kernels.library import define
from cc_kernels.op import Op
from cc_kernels.ops.swiglu import as_rows, place, swiglu_config


@jit()
def _gelu(x, TANH: tl.constexpr):
    """gelu(x), and the factor of x in it."""
    if TANH:
        factor = 1 / (1 + tl.exp(-_slope(x)))
    else:
        factor = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
    return x * factor, factor


@jit()
def _slope(x):
    """z of the tanh form."""
    return 1.5957691216057308 * (x + 0.044715 * x * x * x)


@jit(do_not_specialize=["blocks_per_row"])
def _geglu_fwd_kernel(
    gate_ptr,
    up_ptr,
    out_ptr,
    gate_stride,
    up_stride,
    columns,
    blocks_per_row,
    TANH: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, start = place(tl.program_id(0), blocks_per_row, BLOCK)
    offsets = tl.arange(0, BLOCK)  # [BLOCK]
    mask = offsets < columns - start
    gate = tl.load(gate_ptr + row * gate_stride + start + offsets, mask=mask, other=0.0).to(ARITHMETIC)
    up = tl.load(up_ptr + row * up_stride + start + offsets, mask=mask, other=0.0).to(ARITHMETIC)
    activated, _ = _gelu(gate, TANH)
    out = activated * up
    tl.store(out_ptr + row * columns + start + offsets, out.to(out_ptr.dtype.element_ty), mask=mask)


@jit(do_not_specialize=["blocks_per_row"])
def _geglu_bwd_kernel(
    grad_ptr,
    gate_ptr,
    up_ptr,
    grad_gate_ptr,
    grad_up_ptr,
    grad_stride,
    gate_stride,
    up_stride,
    columns,
    blocks_per_row,
    TANH: tl.constexpr,
    PRODUCT: tl.constexpr,
    ARITHMETIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, start = place(tl.program_id(0), blocks_per_row, BLOCK)
    offsets = tl.arange(0, BLOCK)  # [BLOCK]
    mask = offsets < columns - start
    grad = tl.load(grad_ptr + row * grad_stride + start + offsets, mask=mask, other=0.0).to(ARITHMETIC)
    gate = tl.load(gate_ptr + row * gate_stride + start + offsets, mask=mask, other=0.0).to(ARITHMETIC)
    up = tl.load(up_ptr + row * up_stride + start + offsets, mask=mask, other=0.0).to(ARITHMETIC)
    activated, factor = _gelu(gate, TANH)
    if TANH:  # x σ' z'; far out σ' is 0 and z' is not, but finite
        rest = activated * (1 - factor) * 1.5957691216057308 * (1 + 0.134145 * gate * gate)
    else:
        rest = gate * tl.exp(-0.5 * gate * gate) * 0.3989422804014327
    out = row * columns + start + offsets
    grad_gate = grad * up * (factor + rest)
    tl.store(grad_gate_ptr + out, grad_gate.to(grad_gate_ptr.dtype.element_ty), mask=mask)
    grad_up = grad * activated
    tl.store(grad_up_ptr + out, grad_up.to(grad_up_ptr.dtype.element_ty), mask=mask)
    if PRODUCT:
        product = activated * up
        tl.store(grad_ptr + row * grad_stride + start + offsets, product.to(grad_ptr.dtype.element_ty), mask=mask)


@prepared
def geglu_forward(gate: Tensor, up: Tensor, tanh: bool) -> Tensor:
    """`geglu` without a derivative, and without checks."""
    out = empty(gate, gate.shape)
    if out.numel() == 0:
        return out
    (gate, up), (gate_stride, up_stride), rows, columns = as_rows(gate, up)
    config = swiglu_config(gate.element_size(), warp_size())
    blocks_per_row = blocks(columns, config.block)
    launch(
        _geglu_fwd_kernel, (rows * blocks_per_row,),
        gate_ptr=gate, up_ptr=up, out_ptr=out, gate_stride=gate_stride, up_stride=up_stride,
        columns=columns, blocks_per_row=None if rows == 1 else blocks_per_row,
        TANH=tanh, ARITHMETIC=arithmetic_dtype(gate.dtype), **constants(config),
    )  # fmt: skip
    return out


def _gradients(grad: Tensor, gate: Tensor, up: Tensor, tanh: bool, product: bool) -> tuple[Tensor, Tensor]:
    grad_gate, grad_up = empty(gate, gate.shape), empty(up, up.shape)
    if grad.numel() == 0:
        return grad_gate, grad_up
    (grad, gate, up), (grad_stride, gate_stride, up_stride), rows, columns = as_rows(grad, gate, up)
    config = swiglu_config(gate.element_size(), warp_size())
    blocks_per_row = blocks(columns, config.block)
    launch(
        _geglu_bwd_kernel, (rows * blocks_per_row,),
        grad_ptr=grad, gate_ptr=gate, up_ptr=up, grad_gate_ptr=grad_gate, grad_up_ptr=grad_up,
        grad_stride=grad_stride, gate_stride=gate_stride, up_stride=up_stride,
        columns=columns, blocks_per_row=None if rows == 1 else blocks_per_row,
        TANH=tanh, PRODUCT=product, ARITHMETIC=arithmetic_dtype(gate.dtype), **constants(config),
    )  # fmt: skip
    return grad_gate, grad_up


@prepared
def _geglu_backward(grad: Tensor, gate: Tensor, up: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    return _gradients(grad, gate, up, tanh, product=False)


@prepared
def geglu_backward_(grad: Tensor, gate: Tensor, up: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """∂gate and ∂up; `grad`, contiguous, then holds the op's output, which the gradient of a weight after it needs."""
    gradients = _gradients(grad, gate, up, tanh, product=True)
    written(grad)
    return gradients


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
    gate, up, ctx.tanh = inputs
    ctx.save_for_backward(gate, up)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_backward_op(grad, *ctx.saved_tensors, ctx.tanh), None


if HAS_TRITON:
    _backward_op = define(
        "geglu_backward(Tensor grad, Tensor gate, Tensor up, bool tanh) -> (Tensor, Tensor)",
        _geglu_backward,
        fake=lambda grad, gate, up, tanh: (gate.new_empty(gate.shape), up.new_empty(up.shape)),
        reference=reference.geglu_backward,
    )
    _geglu = define(
        "geglu(Tensor gate, Tensor up, bool tanh) -> Tensor",
        geglu_forward,
        fake=lambda gate, up, tanh: gate.new_empty(gate.shape),
        reference=reference.geglu,
        backward=_autograd,
        save=_save,
    )
    register_triton("geglu", _geglu)


def _check(gate: Tensor, up: Tensor, tanh: bool) -> None:
    check_float("gate", gate)
    check_float("up", up)
    check_shape("up", up, gate.shape, "of gate")
    check_same("up", up, "gate", gate)


# torch.compile fuses the definition into its neighbours, as that of `swiglu`.
_op = Op("geglu", _check, reference.geglu, geglu_forward, trace=True)


def geglu(gate: Tensor, up: Tensor, approximate: str = "none") -> Tensor:
    """`gelu(gate) * up`, elementwise; differentiable.

    Args:
        gate: `(..., I)`, fp16, bf16, fp32 or fp64; any strides.
        up: same shape, dtype and device.
        approximate: `"none"` for the GELU with erf, `"tanh"` for its approximation, as in `torch.nn.functional.gelu`.

    Returns:
        A new tensor of the same shape and dtype.

    Raises:
        TypeError: an argument is no floating-point tensor, or the dtypes differ.
        ValueError: the shapes or the devices differ; `approximate` is something else.

    Source: GLU variants (Shazeer 2020, arXiv 2002.05202); the feed-forward block of Gemma is the tanh one.

    Example:
        >>> import torch
        >>> geglu(torch.tensor([0.0, 2.0]), torch.tensor([5.0, 3.0]), approximate="tanh")
        tensor([0.0000, 5.8638])
    """
    return _op(gate, up, _is_tanh(approximate))


def _is_tanh(approximate: str) -> bool:
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate: expected 'none' or 'tanh', got {approximate!r}")
    return approximate == "tanh"


__all__ = ["geglu", "geglu_backward_", "geglu_forward"]
