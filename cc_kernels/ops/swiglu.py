"""`swiglu`: `out = silu(gate) * up`, with `silu(x) = x / (1 + exp(−x))`.

Shapes: gate, up, out `(..., I)`. dtypes: fp16, bf16, fp32 or fp64, one for all; fp32 arithmetic on 16-bit inputs and
one rounding. Bytes moved by a fused implementation: forward 3·N·I elements, backward 5·N·I (reads gate, up and the
incoming gradient, writes two gradients).
"""

from __future__ import annotations

from torch import Tensor

from cc_kernels import reference
from cc_kernels.backend import choose
from cc_kernels.checks import check_float, check_same, check_shape


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, elementwise; differentiable.

    Args:
        gate: `(..., I)`, fp16, bf16, fp32 or fp64; any strides.
        up: same shape, dtype and device.

    Returns:
        A new tensor of the same shape and dtype.

    Raises:
        TypeError: an argument is no floating-point tensor, or the dtypes differ.
        ValueError: the shapes or the devices differ.

    Source: the feed-forward block of Llama, Qwen and Mistral (Shazeer 2020, arXiv 2002.05202).

    Example:
        >>> import torch
        >>> swiglu(torch.tensor([0.0, 2.0]), torch.tensor([5.0, 3.0]))
        tensor([0.0000, 5.2848])
    """
    check_float("gate", gate)
    check_float("up", up)
    check_shape("up", up, tuple(gate.shape), "of gate")
    check_same("up", up, "gate", gate)
    return choose("swiglu", gate, reference.swiglu)(gate, up)


__all__ = ["swiglu"]
