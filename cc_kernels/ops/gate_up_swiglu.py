"""`gate_up_swiglu`: `out = silu(x W_gᵀ) * (x W_uᵀ)`, the first half of a feed-forward block for a few tokens.

Shapes: x `(K, d)`, w_gate, w_up `(I, d)`, out `(K, I)`. dtypes: one for all. Bytes moved by a fused implementation:
both weights once, x once, the result once.
"""

from __future__ import annotations

from torch import Tensor

from cc_kernels import reference
from cc_kernels.backend import choose
from cc_kernels.checks import check_float, check_inference, check_same, check_shape


def gate_up_swiglu(x: Tensor, w_gate: Tensor, w_up: Tensor) -> Tensor:
    """Gate and up projections with SwiGLU; inference only.

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
    check_float("x", x, ndim=2)
    check_float("w_gate", w_gate, ndim=2)
    check_float("w_up", w_up, ndim=2)
    check_shape("w_gate", w_gate, (w_gate.shape[0], x.shape[1]), "(I, d)")
    check_shape("w_up", w_up, tuple(w_gate.shape), "of w_gate")
    check_same("w_gate", w_gate, "x", x)
    check_same("w_up", w_up, "x", x)
    check_inference("gate_up_swiglu", x=x, w_gate=w_gate, w_up=w_up)
    return choose("gate_up_swiglu", x, reference.gate_up_swiglu)(x, w_gate, w_up)


__all__ = ["gate_up_swiglu"]
