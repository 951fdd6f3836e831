"""A gated feed-forward block in one autograd function, where nothing is attached to its three projections.

    y = down(p),  p = act(g) * u,  g = gate(x),  u = up(x)

Autograd's own graph of it has four nodes, which the host makes and runs, keeps p beside g and u, and adds up two
gradients of x by a kernel. Here there is one node. It keeps g and u, B · T · I elements less per layer. One kernel
makes both gradients of them, and writes p again in the place of its gradient; the second product with a weight adds to
the first.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cc_kernels.ops.geglu import geglu_backward_, geglu_forward
from cc_kernels.ops.swiglu import swiglu_backward_, swiglu_forward
from cc_model.fast_paths.fused import GELU_TANH, SILU


class _WholeBlock(torch.autograd.Function):
    """`y` of x `(..., d)`, weights `(I, d)`, `(I, d)`, `(d, I)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor, activation: str) -> Tensor:
        gated, raised = F.linear(x, gate), F.linear(x, up)
        learned = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        ctx.save_for_backward(x if learned else None, gate, up, down, gated, raised)
        ctx.activation = activation
        return F.linear(_product(gated, raised, activation), down)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph=True: the kernels of a feed-forward block have no second derivative; "
                "cc_kernels.use_backend('torch') runs it without them"
            )
        x, gate, up, down, gated, raised = ctx.saved_tensors
        of_x, of_gate, of_up, of_down, _ = ctx.needs_input_grad
        grad = grads[0].reshape(-1, down.shape[0])
        gated, raised = gated.view(-1, down.shape[1]), raised.view(-1, down.shape[1])
        inner = grad @ down  # ∂p, and then p
        grad_gated, grad_raised = _gradients(inner, gated, raised, ctx.activation)
        grad_down = grad.t() @ inner if of_down else None
        del inner
        flat = None if x is None else x.reshape(-1, gate.shape[1])
        grad_gate = grad_gated.t() @ flat if of_gate and flat is not None else None
        grad_up = grad_raised.t() @ flat if of_up and flat is not None else None
        grad_x = (grad_gated @ gate).addmm_(grad_raised, up).view(*grads[0].shape[:-1], -1) if of_x else None
        return grad_x, grad_gate, grad_up, grad_down, None


def _product(gated: Tensor, raised: Tensor, activation: str) -> Tensor:
    """`act(gated) * raised`, by the launcher itself: nobody looks, and no gradient flows."""
    if activation == SILU:
        return swiglu_forward(gated, raised)
    return geglu_forward(gated, raised, activation == GELU_TANH)


def _gradients(grad: Tensor, gated: Tensor, raised: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Those of gated and raised; `grad` then holds their product."""
    if activation == SILU:
        return swiglu_backward_(grad, gated, raised)
    return geglu_backward_(grad, gated, raised, activation == GELU_TANH)


# The base class's: that of `Function` looks for transforms of torch.func, for which the caller has looked.
whole_block = super(torch.autograd.Function, _WholeBlock).apply

__all__ = ["whole_block"]
