"""The derivative of the operator behind `decide` and `connect`, in the form that autograd asks for."""

from __future__ import annotations

from typing import Any

import torch
from einops import einsum
from torch import Tensor

from cc_kernels.launch import HAS_TRITON
from cc_kernels.library import define
from cc_kernels.ops.decision import backward as decision_backward


def _through_folded(
    grad_logits: Tensor, grad_update: Tensor | None, saved: dict[str, Tensor], want_bank_weight: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients of bank, embeddings, W and `bank_weight` in the folded form, by plain matmuls."""
    bank, folded = saved["bank"].to(grad_logits.dtype), saved["bank_weight"].to(grad_logits.dtype)
    layers = bank.shape[0]
    grad_bank_weight = None
    if folded.ndim == 2:
        grad_bank = (grad_logits @ folded.T / layers).expand(bank.shape)
        if want_bank_weight:
            grad_bank_weight = bank.mean(0).T @ grad_logits
    else:
        grad_bank = einsum(grad_logits, folded, "k m, l d m -> l k d") / layers
        if want_bank_weight:
            grad_bank_weight = einsum(bank, grad_logits, "l k d, k m -> l d m") / layers
    if grad_update is not None:
        share = saved["weights"].T[:, :, None]
        grad_bank = grad_bank + torch.where(share != 0, share * grad_update.to(share.dtype), 0.0)
    grad_embeds = grad_logits @ saved["weight"].to(grad_logits.dtype)
    grad_weight = grad_logits.T @ saved["embeds"].to(grad_logits.dtype)
    return grad_bank, grad_embeds, grad_weight, grad_bank_weight


def autograd(ctx: Any, grad_update: Tensor | None, grad_weights: Tensor | None) -> tuple[Any, ...]:
    """The gradients of bank, embeds, weight, noise, temperature, hard and bank_weight."""
    saved = dict(zip(ctx.names, ctx.saved_tensors))
    bank, weight, weights = saved["bank"], saved["weight"], saved["weights"]
    soft = saved["soft"] if ctx.hard else weights
    want_bank, want_embeds, want_weight, want_noise, *_, want_bank_weight = ctx.needs_input_grad[:7]
    folded = "bank_weight" in saved
    grad_logits, grad_embeds, grad_bank, grad_weight = _backward_op(
        grad_update,
        grad_weights,
        bank,
        weight,
        weights,
        soft,
        saved["vector"] if want_weight and not folded else None,
        ctx.temperature,
        want_bank and not folded,
        want_embeds and not folded,
    )
    grad_bank_weight = None
    if folded:
        grads = _through_folded(grad_logits, grad_update, saved, want_bank_weight)
        grad_bank, grad_embeds = grads[0].to(bank.dtype), grads[1].to(bank.dtype)
        grad_weight = grads[2].to(weight.dtype)
        if grads[3] is not None:
            grad_bank_weight = grads[3].to(saved["bank_weight"].dtype)
    return (
        grad_bank if want_bank else None,
        grad_embeds if want_embeds else None,
        grad_weight if want_weight else None,
        grad_logits.to(ctx.noise_dtype) if want_noise else None,
        None,
        None,
        grad_bank_weight,
    )


if HAS_TRITON:
    _backward_op = define(
        "decision_backward(Tensor? grad_update, Tensor? grad_weights, Tensor bank, Tensor weight, Tensor weights, "
        "Tensor soft, Tensor? vector, float temperature, bool want_bank, bool want_embeds) "
        "-> (Tensor, Tensor, Tensor, Tensor)",
        decision_backward.backward,
        fake=decision_backward.fake_backward,
    )

__all__ = ["autograd"]
