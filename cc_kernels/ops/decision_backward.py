"""The backward kernels of `decide` and `connect`, and their launchers.

With ∂u = ∂update, ∂w = ∂weights and y the softmax, straight-through or not:

    ∂w[k,l] += ∂u[k] · V[l,k]                                    `_mix_bwd_kernel`, parts per block of columns
    ∂z[k]    = y[k] (∂w[k] − Σ_l y[k,l] ∂w[k,l]) / τ             `_decision_bwd_kernel`, from here on
    ∂e[k]    = ∂z[k] W
    ∂V[l,k]  = ∂e[k] / L + w[k,l] ∂u[k]
    ∂W       = ∂zᵀ v, v = mean_l V + e saved by the forward      one small matmul

Bytes moved: the bank once, W and v once, and ∂V once where the bank requires a gradient. A folded `bank_weight` serves
inference; its gradients are plain matmuls.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import einsum
from torch import Tensor

from cc_kernels.launch import arithmetic_dtype, jit, launch, tl, unit_stride, warp_size
from cc_kernels.ops.decision_config import bank_config, output_config
from cc_kernels.ops.decision_parts import sum_parts
from cc_kernels.reference import wide_dtype


@jit()
def _mix_bwd_kernel(
    grad_update_ptr,
    bank_ptr,
    partial_ptr,
    grad_update_stride,
    bank_layer_stride,
    bank_row_stride,
    width,
    ARITHMETIC: tl.constexpr,
    LAYERS: tl.constexpr,
    WIDTH_BLOCKS: tl.constexpr,
    BLOCK_LAYERS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    k = program // WIDTH_BLOCKS
    columns = (program % WIDTH_BLOCKS) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)  # [BD]
    inside = columns < width
    grad = tl.load(grad_update_ptr + k * grad_update_stride + columns, mask=inside, other=0.0).to(ARITHMETIC)
    for first in range(0, LAYERS, BLOCK_LAYERS):
        layers = first + tl.arange(0, BLOCK_LAYERS).to(tl.int64)  # [BL]
        offsets = k * bank_row_stride + layers[:, None] * bank_layer_stride + columns[None, :]
        mask = (layers < LAYERS)[:, None] & inside[None, :]
        tile = tl.load(bank_ptr + offsets, mask=mask, other=0.0).to(ARITHMETIC)  # [BL, BD]
        dots = tl.sum(tile * grad[None, :], axis=1)
        tl.store(partial_ptr + program * LAYERS + layers, dots, mask=layers < LAYERS)


@jit()
def _decision_bwd_kernel(
    partial_ptr,
    grad_weights_ptr,
    soft_ptr,
    weights_ptr,
    grad_update_ptr,
    weight_ptr,
    grad_logits_ptr,
    grad_embeds_ptr,
    grad_bank_ptr,
    grad_weights_stride,
    grad_update_stride,
    weight_stride,
    width,
    rows,
    temperature,
    ARITHMETIC: tl.constexpr,
    LAYERS: tl.constexpr,
    PARTIALS: tl.constexpr,
    WIDTH_BLOCKS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_LAYERS: tl.constexpr,  # all layers
    BLOCK_PARTIALS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    k = program // WIDTH_BLOCKS
    block = program % WIDTH_BLOCKS
    layers = tl.arange(0, BLOCK_LAYERS)  # [BL]
    real = layers < LAYERS

    grad_weights = tl.zeros((BLOCK_LAYERS,), ARITHMETIC)
    if partial_ptr is not None:
        grad_weights += sum_parts(partial_ptr, k, ARITHMETIC, LAYERS, PARTIALS, BLOCK_LAYERS, BLOCK_PARTIALS)
    if grad_weights_ptr is not None:
        at = grad_weights_ptr + k * grad_weights_stride + layers
        grad_weights += tl.load(at, mask=real, other=0.0).to(ARITHMETIC)
    soft = tl.load(soft_ptr + k * LAYERS + layers, mask=real, other=0.0)
    grad_logits = soft * (grad_weights - tl.sum(soft * grad_weights, axis=0)) / temperature
    if block == 0:
        tl.store(grad_logits_ptr + k * LAYERS + layers, grad_logits, mask=real)

    for step in range(STEPS):
        columns = (block * STEPS + step) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)  # [BD]
        inside = columns < width
        row = layers.to(tl.int64)[:, None]  # [BL, 1], of W and of the bank
        mask = real[:, None] & inside[None, :]
        weight = tl.load(weight_ptr + row * weight_stride + columns[None, :], mask=mask, other=0.0)
        grad_vector = tl.sum(weight.to(ARITHMETIC) * grad_logits[:, None], axis=0)  # [BD]
        if grad_embeds_ptr is not None:
            tl.store(grad_embeds_ptr + k * width + columns, grad_vector, mask=inside)
        if grad_bank_ptr is not None:
            grad_bank = (grad_vector / LAYERS)[None, :]
            if grad_update_ptr is not None:  # a weight of 0 is chosen by where: 0 · inf is no zero
                share = tl.load(weights_ptr + k * LAYERS + layers, mask=real, other=0.0)[:, None]
                at = grad_update_ptr + k * grad_update_stride + columns
                grad_update = tl.load(at, mask=inside, other=0.0).to(ARITHMETIC)[None, :]
                grad_bank = grad_bank + tl.where(share != 0.0, share * grad_update, 0.0)
            tl.store(grad_bank_ptr + (row * rows + k) * width + columns[None, :], grad_bank, mask=mask)


def _mix_gradient(grad_update: Tensor, bank: Tensor) -> Tensor:
    """The parts of `∂u[k] · V[l,k]`, `(K, blocks, L)`."""
    layers, rows, width = bank.shape
    config = bank_config(layers, rows, width, bank.element_size(), warp_size())
    partial = bank.new_empty((rows, config.width_blocks, layers), dtype=wide_dtype(bank.dtype))
    launch(
        _mix_bwd_kernel,
        (rows * config.width_blocks,),
        like=bank,
        grad_update_ptr=grad_update,
        bank_ptr=bank,
        partial_ptr=partial,
        grad_update_stride=grad_update.stride(0),
        bank_layer_stride=bank.stride(0),
        bank_row_stride=bank.stride(1),
        width=width,
        ARITHMETIC=arithmetic_dtype(bank.dtype),
        LAYERS=layers,
        WIDTH_BLOCKS=config.width_blocks,
        BLOCK_LAYERS=config.block_layers,
        BLOCK_WIDTH=config.block_width,
        num_warps=config.num_warps,
    )
    return partial


def backward(
    grad_update: Tensor | None,
    grad_weights: Tensor | None,
    bank: Tensor,
    weight: Tensor,
    weights: Tensor,
    soft: Tensor,
    temperature: float,
    want_bank: bool,
    want_embeds: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the logits `(K, L)`, of the embeddings `(K, d)` and of the bank (empty where not wanted)."""
    layers, rows, width = bank.shape
    bank, weight = unit_stride(bank), unit_stride(weight)
    grad_logits = weights.new_empty(weights.shape)
    grad_embeds = bank.new_empty((rows, width) if want_embeds else (0,))
    grad_bank = bank.new_empty(bank.shape if want_bank else (0,))
    partial = None
    if grad_update is not None:
        grad_update = unit_stride(grad_update)
        partial = _mix_gradient(grad_update, bank)
    if grad_weights is not None:
        grad_weights = unit_stride(grad_weights)
    partials = 0 if partial is None else partial.shape[1]
    columns = width if want_bank or want_embeds else 1
    config = output_config(layers, rows, columns, partials, False, warp_size())
    launch(
        _decision_bwd_kernel,
        (rows * max(config.width_blocks, 1),),
        like=bank,
        partial_ptr=partial,
        grad_weights_ptr=grad_weights,
        soft_ptr=soft,
        weights_ptr=weights,
        grad_update_ptr=grad_update,
        weight_ptr=weight,
        grad_logits_ptr=grad_logits,
        grad_embeds_ptr=grad_embeds if want_embeds else None,
        grad_bank_ptr=grad_bank if want_bank else None,
        grad_weights_stride=0 if grad_weights is None else grad_weights.stride(0),
        grad_update_stride=0 if grad_update is None else grad_update.stride(0),
        weight_stride=weight.stride(0),
        width=width,
        rows=rows,
        temperature=float(temperature),
        ARITHMETIC=arithmetic_dtype(bank.dtype),
        LAYERS=layers,
        PARTIALS=partials,
        WIDTH_BLOCKS=max(config.width_blocks, 1),
        STEPS=config.steps,
        BLOCK_LAYERS=config.block_layers,
        BLOCK_PARTIALS=config.block_partials,
        BLOCK_WIDTH=config.block_width,
        num_warps=config.num_warps,
    )
    return grad_logits, grad_embeds, grad_bank


def fake_backward(
    grad_update: Tensor | None,
    grad_weights: Tensor | None,
    bank: Tensor,
    weight: Tensor,
    weights: Tensor,
    soft: Tensor,
    temperature: float,
    want_bank: bool,
    want_embeds: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The results of `backward` without data."""
    return (
        weights.new_empty(weights.shape),
        bank.new_empty(bank.shape[1:] if want_embeds else (0,)),
        bank.new_empty(bank.shape if want_bank else (0,)),
    )


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
    grad_logits, grad_embeds, grad_bank = torch.ops.cc_kernels.decision_backward(
        grad_update,
        grad_weights,
        bank,
        weight,
        weights,
        soft,
        ctx.temperature,
        want_bank and not folded,
        want_embeds and not folded,
    )
    grad_weight = grad_bank_weight = None
    if folded:
        grads = _through_folded(grad_logits, grad_update, saved, want_bank_weight)
        grad_bank, grad_embeds, grad_weight = grads[0].to(bank.dtype), grads[1].to(bank.dtype), grads[2]
        if grads[3] is not None:
            grad_bank_weight = grads[3].to(saved["bank_weight"].dtype)
    elif want_weight:
        grad_weight = grad_logits.T @ saved["vector"]
    return (
        grad_bank if want_bank else None,
        grad_embeds if want_embeds else None,
        grad_weight.to(weight.dtype) if want_weight and grad_weight is not None else None,
        grad_logits.to(ctx.noise_dtype) if want_noise else None,
        None,
        None,
        grad_bank_weight,
    )


__all__ = ["autograd", "backward", "fake_backward"]
