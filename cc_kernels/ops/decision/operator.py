"""The operator behind `decide` and `connect`: both decide by the same two launches, and one of them also selects."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cc_kernels.backend import register_triton
from cc_kernels.launch import HAS_TRITON
from cc_kernels.library import define
from cc_kernels.ops.decision import autograd as decision_autograd
from cc_kernels.ops.decision import forward as decision_forward


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    bank, embeds, weight, noise, temperature, hard, bank_weight, with_update = inputs
    update, weights, soft, vector = output
    saved = {"bank": bank, "weight": weight, "weights": weights, "soft": soft}
    if bank_weight is None:
        saved["vector"] = vector
    else:
        saved |= {"embeds": embeds, "bank_weight": bank_weight}
    ctx.names = tuple(saved)
    ctx.save_for_backward(*saved.values())
    ctx.hard, ctx.temperature = hard, temperature
    ctx.noise_dtype = None if noise is None else noise.dtype
    ctx.set_materialize_grads(False)  # a result that nobody used must not cost a tensor of zeros
    ctx.mark_non_differentiable(soft, vector, *(() if with_update else (update,)))


def _autograd(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    grad_update, grad_weights = grads[:2]
    return (*decision_autograd.autograd(ctx, grad_update, grad_weights), None)


def _connect_triton(
    bank: Tensor,
    embeds: Tensor,
    weight: Tensor,
    noise: Tensor | None,
    temperature: float,
    hard: bool,
    bank_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    update, weights, _, _ = _decision_op(bank, embeds, weight, noise, temperature, hard, bank_weight, True)
    return update, weights


def _decide_triton(
    bank: Tensor,
    embeds: Tensor,
    weight: Tensor,
    noise: Tensor | None,
    temperature: float,
    hard: bool,
    bank_weight: Tensor | None,
) -> Tensor:
    return _decision_op(bank, embeds, weight, noise, temperature, hard, bank_weight, False)[1]


if HAS_TRITON:
    _decision_op = define(
        "decision(Tensor bank, Tensor embeds, Tensor weight, Tensor? noise, float temperature, bool hard, "
        "Tensor? bank_weight, bool with_update) -> (Tensor, Tensor, Tensor, Tensor)",
        decision_forward.forward,
        fake=decision_forward.fake_forward,
        backward=_autograd,
        save=_save,
    )
    register_triton("decide", _decide_triton)
    register_triton("connect", _connect_triton)
