"""The operator behind `decide` and `connect`: both decide by the same two launches, and one of them also selects."""

from __future__ import annotations

from typing import Any

import torch
from einops import einsum
from torch import Tensor

from cc_kernels import reference
from cc_kernels.backend import register_triton
from cc_kernels.launch import HAS_TRITON, empty, prepared
from cc_kernels.library import define
from cc_kernels.ops.decision import backward as decision_backward
from cc_kernels.ops.decision import forward as decision_forward
from cc_kernels.reference import wide_dtype


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    bank, embeds, weight, noise, temperature, hard, bank_weight, with_update, rows = inputs
    update, weights, soft, vector = output
    saved = {"bank": bank, "weight": weight, "weights": weights, "soft": soft}
    if bank_weight is None:
        saved["vector"] = vector
    else:
        saved |= {"embeds": embeds, "bank_weight": bank_weight}
    if rows is not None:
        saved["rows"] = rows
    ctx.names = tuple(saved)
    ctx.save_for_backward(*saved.values())
    ctx.hard, ctx.temperature = hard, temperature
    ctx.noise_dtype = None if noise is None else noise.dtype
    ctx.set_materialize_grads(False)  # a result that nobody used must not cost a tensor of zeros
    ctx.mark_non_differentiable(soft, vector, *(() if with_update else (update,)))


def _through_folded(
    grad_logits: Tensor, grad_update: Tensor | None, saved: dict[str, Tensor], want_bank_weight: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients of bank, embeddings, W and `bank_weight` in the folded form, by plain matmuls."""
    rows, folded = saved.get("rows"), saved["bank_weight"].to(grad_logits.dtype)
    bank = reference.read_bank(saved["bank"].to(grad_logits.dtype), rows)
    layers, embeds = bank.shape[0], saved["embeds"].to(grad_logits.dtype)
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
    if rows is not None:
        grad_bank = reference.add_to_bank(grad_bank, rows, saved["bank"].shape[1])
        embeds = torch.where((rows >= 0)[:, None], embeds, 0.0)
    grad_embeds = grad_logits @ saved["weight"].to(grad_logits.dtype)
    grad_weight = grad_logits.T @ embeds
    return grad_bank, grad_embeds, grad_weight, grad_bank_weight


def _autograd(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    """The gradients of the operator's arguments."""
    grad_update, grad_weights = grads[:2]
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
        saved.get("rows"),
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
        None,
        None,
    )


@prepared
def _forward(bank: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """`forward` as an operator returns it: empty tensors for what does not exist."""
    update, weights, soft, vector = decision_forward.forward(bank, *arguments)
    return (
        empty(bank, (0,)) if update is None else update,
        weights,
        empty(weights, (0,)) if soft is None else soft,
        empty(weights, (0,)) if vector is None else vector,
    )


@prepared
def connect_launches(
    bank: Tensor,
    embeds: Tensor,
    weight: Tensor,
    noise: Tensor | None,
    temperature: float,
    hard: bool,
    bank_weight: Tensor | None,
    rows: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """`connect` without what its backward would need."""
    options = temperature, hard, bank_weight, True, rows, False
    update, weights, _, _ = decision_forward.forward(bank, embeds, weight, noise, *options)
    return update, weights


@prepared
def decide_launches(
    bank: Tensor,
    embeds: Tensor,
    weight: Tensor,
    noise: Tensor | None,
    temperature: float,
    hard: bool,
    bank_weight: Tensor | None,
    rows: Tensor | None = None,
) -> Tensor:
    """`decide` without what its backward would need."""
    options = temperature, hard, bank_weight, False, rows, False
    return decision_forward.forward(bank, embeds, weight, noise, *options)[1]


def _connect_triton(
    bank: Tensor,
    embeds: Tensor,
    weight: Tensor,
    noise: Tensor | None,
    temperature: float,
    hard: bool,
    bank_weight: Tensor | None,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    update, weights, _, _ = _decision_op(bank, embeds, weight, noise, temperature, hard, bank_weight, True, rows)
    return update, weights


def _decide_triton(
    bank: Tensor,
    embeds: Tensor,
    weight: Tensor,
    noise: Tensor | None,
    temperature: float,
    hard: bool,
    bank_weight: Tensor | None,
    rows: Tensor | None = None,
) -> Tensor:
    return _decision_op(bank, embeds, weight, noise, temperature, hard, bank_weight, False, rows)[1]


def _fake_forward(
    bank: Tensor,
    embeds: Tensor,
    weight: Tensor,
    noise: Tensor | None,
    temperature: float,
    hard: bool,
    bank_weight: Tensor | None,
    with_update: bool,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results of `forward` without data."""
    layers, (count, width) = bank.shape[0], embeds.shape
    wide = wide_dtype(bank.dtype)
    return (
        bank.new_empty((count, width) if with_update else (0,)),
        bank.new_empty((count, layers), dtype=wide),
        bank.new_empty((count, layers) if hard else (0,), dtype=wide),
        bank.new_empty((0,) if bank_weight is not None else (count, width), dtype=wide),
    )


def _fake_backward(
    grad_update: Tensor | None,
    grad_weights: Tensor | None,
    bank: Tensor,
    weight: Tensor,
    weights: Tensor,
    soft: Tensor,
    vector: Tensor | None,
    temperature: float,
    want_bank: bool,
    want_embeds: bool,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results of `backward` without data."""
    return (
        weights.new_empty(weights.shape),
        bank.new_empty((weights.shape[0], bank.shape[2]) if want_embeds else (0,)),
        bank.new_empty(bank.shape if want_bank else (0,)),
        weight.new_empty((0,) if vector is None else weight.shape),
    )


if HAS_TRITON:
    _backward_op = define(
        "decision_backward(Tensor? grad_update, Tensor? grad_weights, Tensor bank, Tensor weight, Tensor weights, "
        "Tensor soft, Tensor? vector, float temperature, bool want_bank, bool want_embeds, "
        "Tensor? rows=None) "
        "-> (Tensor, Tensor, Tensor, Tensor)",
        decision_backward.backward,
        fake=_fake_backward,
        reference=reference.decision_backward,
    )
    _decision_op = define(
        "decision(Tensor bank, Tensor embeds, Tensor weight, Tensor? noise, float temperature, bool hard, "
        "Tensor? bank_weight, bool with_update, Tensor? rows=None) -> (Tensor, Tensor, Tensor, Tensor)",
        _forward,
        fake=_fake_forward,
        reference=reference.decision,
        backward=_autograd,
        save=_save,
    )
    register_triton("decide", _decide_triton)
    register_triton("connect", _connect_triton)
