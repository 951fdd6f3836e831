"""The backward kernels of `decide` and `connect`, and their launchers.

With ∂u = ∂update, ∂w = ∂weights and y the softmax, straight-through or not:

    ∂w[k,l] += ∂u[k] · V[l,k]                                    `_mix_bwd_kernel`, parts per block of columns
    ∂z[k]    = y[k] (∂w[k] − Σ_l y[k,l] ∂w[k,l]) / τ             `_decision_bwd_kernel`, this and the next two
    ∂e[k]    = ∂z[k] W
    ∂V[l,k]  = ∂e[k] / L + w[k,l] ∂u[k]
    ∂V[l,p]  = Σ of these over the k with rows[k] = p            `_bank_rows_bwd_kernel`, with `rows`
    ∂W       = ∂zᵀ v, v = mean_l V + e saved by the forward      `_weight_bwd_kernel`

Bytes moved: the bank once, W and v once, and ∂V once where the bank requires a gradient. A folded `bank_weight` serves
inference; its gradients are plain matmuls.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cc_kernels.launch import (
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
    warp_size,
)
from cc_kernels.ops.decision.config import mix_config, output_config, weight_config
from cc_kernels.ops.decision.forward import sum_parts
from cc_kernels.reference import wide_dtype


@jit()
def _mix_bwd_kernel(
    grad_update_ptr, bank_ptr, rows_ptr, partial_ptr,
    grad_update_stride, bank_layer_stride, bank_row_stride, rows_stride,
    width, steps,
    ARITHMETIC: tl.constexpr, LAYERS: tl.constexpr, LAYER_BLOCKS: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_LAYERS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    part = program % PARTS
    k = program // (PARTS * LAYER_BLOCKS)
    layers = (program // PARTS % LAYER_BLOCKS) * BLOCK_LAYERS + tl.arange(0, BLOCK_LAYERS)  # [BL]
    source, readable = k, width
    if rows_ptr is not None:
        source = tl.load(rows_ptr + k * rows_stride).to(tl.int64)
        readable = tl.where(source >= 0, width, 0)
    row_at = bank_ptr + source * bank_row_stride + layers[:, None] * bank_layer_stride
    products = tl.zeros((BLOCK_LAYERS, BLOCK_WIDTH), ARITHMETIC)
    step = 0
    while step < steps:
        columns = (part * steps + step) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)  # [BD]
        inside = columns < readable
        grad = tl.load(grad_update_ptr + k * grad_update_stride + columns, mask=inside, other=0.0).to(ARITHMETIC)
        tile = tl.load(row_at + columns[None, :], mask=(layers < LAYERS)[:, None] & inside[None, :], other=0.0)
        products += tile.to(ARITHMETIC) * grad[None, :]
        step += 1
    tl.store(partial_ptr + (k * PARTS + part) * LAYERS + layers, tl.sum(products, axis=1), mask=layers < LAYERS)


@jit()
def _logits_gradient(
    partial_ptr, grad_weights_at, soft_at,
    k, temperature,
    ARITHMETIC: tl.constexpr, LAYERS: tl.constexpr, PARTIALS: tl.constexpr, BLOCK_LAYERS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
):  # fmt: skip
    """`∂z[k]` [BL], from the parts of `∂u[k] · V[l]` and the gradient given for the weights, either may be None."""
    layers = tl.arange(0, BLOCK_LAYERS)
    real = layers < LAYERS
    grad_weights = tl.zeros((BLOCK_LAYERS,), ARITHMETIC)
    if partial_ptr is not None:
        grad_weights += sum_parts(partial_ptr, k, ARITHMETIC, LAYERS, PARTIALS, BLOCK_LAYERS, BLOCK_PARTIALS)
    if grad_weights_at is not None:
        grad_weights += tl.load(grad_weights_at + layers, mask=real, other=0.0).to(ARITHMETIC)
    soft = tl.load(soft_at + layers, mask=real, other=0.0)
    return soft * (grad_weights - tl.sum(soft * grad_weights, axis=0)) / temperature


@jit(do_not_specialize=["rows"])
def _decision_bwd_kernel(
    partial_ptr, grad_weights_ptr, soft_ptr, weights_ptr, grad_update_ptr, weight_ptr, rows_ptr, grad_logits_ptr,
    grad_embeds_ptr, grad_bank_ptr,
    grad_weights_stride, grad_update_stride, weight_stride, rows_stride,
    width, rows, temperature,
    ARITHMETIC: tl.constexpr, LAYERS: tl.constexpr, PARTIALS: tl.constexpr, BLOCK_LAYERS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, STEPS: tl.constexpr, WIDTH_BLOCKS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    k = program // WIDTH_BLOCKS
    block = program % WIDTH_BLOCKS
    layers = tl.arange(0, BLOCK_LAYERS)  # [BL]
    real = layers < LAYERS
    # W's first tile depends on nothing: it arrives while ∂z is worked out.
    row = layers.to(tl.int64)[:, None]  # [BL, 1], of W and of the bank
    columns = block * STEPS * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)  # [BD]
    weight_at = weight_ptr + row * weight_stride
    weight = tl.load(weight_at + columns[None, :], mask=real[:, None] & (columns < width)[None, :], other=0.0)

    given = None if grad_weights_ptr is None else grad_weights_ptr + k * grad_weights_stride
    soft_at = soft_ptr + k * LAYERS
    grad_logits = _logits_gradient(
        partial_ptr, given, soft_at, k, temperature, ARITHMETIC, LAYERS, PARTIALS, BLOCK_LAYERS, BLOCK_PARTIALS
    )
    if rows_ptr is not None:  # a row that reads none has gradients of 0, whatever arrives for it
        connected = tl.where(tl.load(rows_ptr + k * rows_stride) >= 0, LAYERS, 0)
        grad_logits = tl.where(layers < connected, grad_logits, 0.0)
    if block == 0:
        tl.store(grad_logits_ptr + k * LAYERS + layers, grad_logits, mask=real)

    for step in range(STEPS):
        if step > 0:
            columns += BLOCK_WIDTH
            mask = real[:, None] & (columns < width)[None, :]
            weight = tl.load(weight_at + columns[None, :], mask=mask, other=0.0)
        inside = columns < width
        mask = real[:, None] & inside[None, :]
        grad_vector = tl.sum(weight.to(ARITHMETIC) * grad_logits[:, None], axis=0)  # [BD]
        if grad_embeds_ptr is not None:
            tl.store(grad_embeds_ptr + k * width + columns, grad_vector, mask=inside)
        if grad_bank_ptr is not None:
            grad_bank = (grad_vector / LAYERS)[None, :]
            if grad_update_ptr is not None:  # a weight of 0 is chosen by where: 0 · inf is no zero
                share = tl.load(weights_ptr + k * LAYERS + layers, mask=real, other=0.0)[:, None]
                update_at = grad_update_ptr + k * grad_update_stride + columns
                grad_update = tl.load(update_at, mask=inside, other=0.0).to(ARITHMETIC)[None, :]
                grad_bank = grad_bank + tl.where(share != 0.0, share * grad_update, 0.0)
            tl.store(grad_bank_ptr + (row * rows + k) * width + columns[None, :], grad_bank, mask=mask)


@jit(do_not_specialize=["rows"])
def _bank_rows_bwd_kernel(
    grad_logits_ptr, weights_ptr, grad_update_ptr, weight_ptr, rows_ptr, grad_bank_ptr,
    grad_update_stride, weight_stride, rows_stride, grad_bank_layer_stride,
    width, rows,
    ARITHMETIC: tl.constexpr, LAYERS: tl.constexpr, BLOCK_LAYERS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    WIDTH_BLOCKS: tl.constexpr,
):  # fmt: skip
    """`∂V[l,p]`, summed in order over the rows that read p: no atomics. All of ∂z is known."""
    program = tl.program_id(0).to(tl.int64)
    p = program // WIDTH_BLOCKS
    layers = tl.arange(0, BLOCK_LAYERS)  # [BL]
    columns = (program % WIDTH_BLOCKS) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)  # [BD]
    real, inside = layers < LAYERS, columns < width
    mask = real[:, None] & inside[None, :]
    at = layers.to(tl.int64)[:, None]
    weight = tl.load(weight_ptr + at * weight_stride + columns[None, :], mask=mask, other=0.0).to(ARITHMETIC)
    grad_logits = tl.zeros((BLOCK_LAYERS,), ARITHMETIC)
    grad_bank = tl.zeros((BLOCK_LAYERS, BLOCK_WIDTH), ARITHMETIC)
    k = p * 0
    while k < rows:
        if tl.load(rows_ptr + k * rows_stride).to(tl.int64) == p:
            grad_logits += tl.load(grad_logits_ptr + k * LAYERS + layers, mask=real, other=0.0)
            if grad_update_ptr is not None:  # a weight of 0 is chosen by where: 0 · inf is no zero
                share = tl.load(weights_ptr + k * LAYERS + layers, mask=real, other=0.0)[:, None]
                grad_update = tl.load(grad_update_ptr + k * grad_update_stride + columns, mask=inside, other=0.0)
                grad_bank += tl.where(share != 0.0, share * grad_update.to(ARITHMETIC)[None, :], 0.0)
        k += 1
    grad_bank += (tl.sum(weight * grad_logits[:, None], axis=0) / LAYERS)[None, :]
    tl.store(grad_bank_ptr + at * grad_bank_layer_stride + p * width + columns[None, :], grad_bank, mask=mask)


@jit(do_not_specialize=["rows"])
def _weight_bwd_kernel(
    grad_logits_ptr, vector_ptr, grad_weight_ptr,
    vector_stride, grad_weight_stride,
    rows, width,
    ARITHMETIC: tl.constexpr, LAYERS: tl.constexpr, BLOCK_LAYERS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0).to(tl.int64) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)  # [BD]
    layers = tl.program_id(1).to(tl.int64) * BLOCK_LAYERS + tl.arange(0, BLOCK_LAYERS)  # [BL]
    real, inside = layers < LAYERS, columns < width
    total = tl.zeros((BLOCK_LAYERS, BLOCK_WIDTH), ARITHMETIC)
    first = 0
    while first < rows:
        k = first + tl.arange(0, BLOCK_ROWS).to(tl.int64)  # [BK]
        here = k < rows
        grad_at = grad_logits_ptr + k[None, :] * LAYERS + layers[:, None]
        grad = tl.load(grad_at, mask=real[:, None] & here[None, :], other=0.0)
        vector_at = vector_ptr + k[:, None] * vector_stride + columns[None, :]
        vector = tl.load(vector_at, mask=here[:, None] & inside[None, :], other=0.0)
        total = tl.dot(grad, vector, total, input_precision="ieee", out_dtype=ARITHMETIC)
        first += BLOCK_ROWS
    at = grad_weight_ptr + layers[:, None] * grad_weight_stride + columns[None, :]
    tl.store(at, total.to(grad_weight_ptr.dtype.element_ty), mask=real[:, None] & inside[None, :])


def _mix_gradient(grad_update: Tensor, bank: Tensor, rows: Tensor | None) -> Tensor:
    """The parts of `∂u[k] · V[l,k]`, `(K, parts, L)`."""
    layers, (count, width) = bank.shape[0], grad_update.shape
    config = mix_config(layers, width, bank.element_size(), gpu())
    partial = empty(bank, (count, config.parts, layers), wide_dtype(bank.dtype))
    layer_blocks = blocks(layers, config.block_layers)
    launch(
        _mix_bwd_kernel, (count * layer_blocks * config.parts,),
        grad_update_ptr=grad_update, bank_ptr=bank, rows_ptr=rows, partial_ptr=partial,
        grad_update_stride=grad_update.stride(0), bank_layer_stride=bank.stride(0), bank_row_stride=bank.stride(1),
        rows_stride=0 if rows is None else rows.stride(0),
        width=width, steps=config.steps,
        ARITHMETIC=arithmetic_dtype(bank.dtype), LAYERS=layers, LAYER_BLOCKS=layer_blocks, PARTS=config.parts,
        BLOCK_LAYERS=config.block_layers, BLOCK_WIDTH=config.block_width, num_warps=config.num_warps,
    )  # fmt: skip
    return partial


def _weight_gradient(grad_logits: Tensor, vector: Tensor, dtype: torch.dtype) -> Tensor:
    """`∂zᵀ v`, `(L, d)` in `dtype`."""
    (rows, layers), width = grad_logits.shape, vector.shape[1]
    grad_weight = empty(vector, (layers, width), dtype)
    config = weight_config(layers, width, warp_size())
    launch(
        _weight_bwd_kernel, (blocks(width, config.block_width), blocks(layers, config.block_layers)),
        grad_logits_ptr=grad_logits, vector_ptr=vector, grad_weight_ptr=grad_weight,
        vector_stride=vector.stride(0), grad_weight_stride=grad_weight.stride(0),
        rows=rows, width=width,
        ARITHMETIC=arithmetic_dtype(vector.dtype), LAYERS=layers, **constants(config),
    )  # fmt: skip
    return grad_weight


def _bank_gradient(
    grad_logits: Tensor, weights: Tensor, grad_update: Tensor | None, weight: Tensor, rows: Tensor, grad_bank: Tensor
) -> None:
    """Write `∂V` `(L, P, d)`, whose row p collects the gradients of every k with `rows[k] == p`."""
    layers, sources, width = grad_bank.shape
    config = output_config(layers, width, 1, False, gpu())
    width_blocks = blocks(width, config.block_width)
    launch(
        _bank_rows_bwd_kernel, (sources * width_blocks,),
        grad_logits_ptr=grad_logits, weights_ptr=weights, grad_update_ptr=grad_update, weight_ptr=weight,
        rows_ptr=rows, grad_bank_ptr=grad_bank,
        grad_update_stride=0 if grad_update is None else grad_update.stride(0), weight_stride=weight.stride(0),
        rows_stride=rows.stride(0), grad_bank_layer_stride=grad_bank.stride(0),
        width=width, rows=rows.shape[0],
        ARITHMETIC=arithmetic_dtype(grad_bank.dtype), LAYERS=layers, BLOCK_LAYERS=config.block_layers,
        BLOCK_WIDTH=config.block_width, WIDTH_BLOCKS=width_blocks, num_warps=config.num_warps,
    )  # fmt: skip


@prepared
def backward(
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
    """The gradients of logits `(K, L)`, embeddings `(K, d)`, bank and W (empty where not wanted).

    That of W is wanted where the `vector` that the forward saved is given.
    """
    (count, layers), width = weights.shape, bank.shape[2]
    bank, weight = unit_stride(bank), unit_stride(weight)
    grad_logits = empty(weights, weights.shape)
    grad_embeds = empty(bank, (count, width) if want_embeds else (0,))
    grad_bank = empty(bank, bank.shape if want_bank else (0,))
    partial = None
    if grad_update is not None:
        grad_update = unit_stride(grad_update)
        partial = _mix_gradient(grad_update, bank, rows)
    if grad_weights is not None:
        grad_weights = unit_stride(grad_weights)
    partials = 0 if partial is None else partial.shape[1]
    own_rows = want_bank and rows is None  # otherwise several rows may share one of the bank
    columns = width if own_rows or want_embeds else 1
    config = output_config(layers, columns, partials, False, gpu())
    launch(
        _decision_bwd_kernel, (count * config.width_blocks,),
        partial_ptr=partial, grad_weights_ptr=grad_weights, soft_ptr=soft, weights_ptr=weights,
        grad_update_ptr=grad_update, weight_ptr=weight, rows_ptr=rows, grad_logits_ptr=grad_logits,
        grad_embeds_ptr=grad_embeds if want_embeds else None, grad_bank_ptr=grad_bank if own_rows else None,
        grad_weights_stride=0 if grad_weights is None else grad_weights.stride(0),
        grad_update_stride=0 if grad_update is None else grad_update.stride(0), weight_stride=weight.stride(0),
        rows_stride=0 if rows is None else rows.stride(0),
        width=width, rows=count, temperature=float(temperature),
        ARITHMETIC=arithmetic_dtype(bank.dtype), LAYERS=layers, PARTIALS=partials, **constants(config),
    )  # fmt: skip
    if want_bank and rows is not None:
        _bank_gradient(grad_logits, weights, grad_update, weight, rows, grad_bank)
    grad_weight = empty(weight, (0,)) if vector is None else _weight_gradient(grad_logits, vector, weight.dtype)
    return grad_logits, grad_embeds, grad_bank, grad_weight


__all__ = ["backward"]
