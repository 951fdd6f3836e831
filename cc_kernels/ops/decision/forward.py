"""The forward kernels of `decide` and `connect`, and their launchers.

One program per row would read the whole bank of that row alone, 0.25 MB at L=32, d=4096 in bf16. So the work is split
over d as well, in two launches without atomics:

1. `_partial_logits_fwd_kernel`, for each (group of rows, block of columns): reads the bank once, keeps
   `v = mean_l V[l,k] + e[k]` in registers, and writes the part of `W v` that these columns contribute. A group of rows
   shares what it reads of W. With a folded matrix per layer, `_partial_logits_per_layer_fwd_kernel` does it row by row.
2. `_choose_fwd_kernel`, for each (row, block of columns): adds up the parts in a fixed order, decides, and writes its
   columns of the update. The decision is repeated by each program of a row, which costs a few KB from L2.
"""

from __future__ import annotations

from torch import Tensor

from cc_kernels.launch import (
    arithmetic_dtype,
    blocks,
    constants,
    empty,
    gpu,
    jit,
    launch,
    row_stride,
    tl,
    unit_stride,
)
from cc_kernels.ops.decision.config import bank_config, output_config
from cc_kernels.reference import wide_dtype


@jit()
def _mean_over_layers(
    bank_at, real, bank_layer_stride,
    ARITHMETIC: tl.constexpr, LAYERS: tl.constexpr, BLOCK_LAYERS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`mean_l V[l]` [BK, BD], where `bank_at` and `real` [BK, BD] say where layer 0 is and what of it exists.

    Tiles are added element by element, so that only the last sum crosses threads. Where there are several, `STAGES` − 1
    of them are copied to shared memory ahead of time.
    """
    total = tl.zeros((BLOCK_LAYERS, real.shape[0], real.shape[1]), ARITHMETIC)
    for first in tl.range(0, LAYERS, BLOCK_LAYERS, num_stages=STAGES):
        layers = first + tl.arange(0, BLOCK_LAYERS).to(tl.int64)[:, None, None]  # [BL, 1, 1]
        mask = (layers < LAYERS) & real[None, :, :]
        total += tl.load(bank_at[None, :, :] + layers * bank_layer_stride, mask=mask, other=0.0).to(ARITHMETIC)
    return tl.sum(total, axis=0) / LAYERS


@jit()
def sum_parts(
    partial_ptr, k,
    ARITHMETIC: tl.constexpr, LAYERS: tl.constexpr, PARTIALS: tl.constexpr, BLOCK_LAYERS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
):  # fmt: skip
    """`Σ_b partial[k, b]` [BL], always in the same order."""
    layers = tl.arange(0, BLOCK_LAYERS)
    total = tl.zeros((BLOCK_LAYERS,), ARITHMETIC)
    for first in range(0, PARTIALS, BLOCK_PARTIALS):
        parts = first + tl.arange(0, BLOCK_PARTIALS)  # [BP]
        at = partial_ptr + (k * PARTIALS + parts)[:, None] * LAYERS + layers[None, :]
        mask = (parts < PARTIALS)[:, None] & (layers < LAYERS)[None, :]
        total += tl.sum(tl.load(at, mask=mask, other=0.0), axis=0)
    return total


@jit(do_not_specialize=["rows"])
def _partial_logits_fwd_kernel(
    bank_ptr, embeds_ptr, weight_ptr, folded_ptr, rows_ptr, partial_ptr, vector_ptr,
    bank_layer_stride, bank_row_stride, embeds_stride, weight_stride, rows_stride, folded_layer_stride,
    folded_column_stride, folded_logit_stride,
    rows, width,
    ARITHMETIC: tl.constexpr, LAYERS: tl.constexpr, BLOCK_LAYERS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr, BLOCK_LOGITS: tl.constexpr, WIDTH_BLOCKS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The part of `W (mean_l V[l] + e)`, or with F of `mean_l V[l] F + W e`, that a block of columns contributes."""
    program = tl.program_id(0).to(tl.int64)
    block = program % WIDTH_BLOCKS
    k = (program // WIDTH_BLOCKS) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)  # [BK]
    columns = block * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)  # [BD]
    here, inside = k < rows, columns < width
    read, source = here, k
    if rows_ptr is not None:
        source = tl.load(rows_ptr + k * rows_stride, mask=here, other=-1).to(tl.int64)
        read = source >= 0
    real = read[:, None] & inside[None, :]
    # W's first tile depends on nothing: asked for before the bank, it arrives while the bank is being read.
    logits = tl.arange(0, BLOCK_LOGITS).to(tl.int64)  # [BG]
    mask = (logits < LAYERS)[:, None] & inside[None, :]
    weight = tl.load(weight_ptr + logits[:, None] * weight_stride + columns[None, :], mask=mask, other=0.0)
    embeds = tl.load(embeds_ptr + k[:, None] * embeds_stride + columns[None, :], mask=real, other=0.0).to(ARITHMETIC)

    bank_at = bank_ptr + source[:, None] * bank_row_stride + columns[None, :]  # [BK, BD]
    mean = _mean_over_layers(bank_at, real, bank_layer_stride, ARITHMETIC, LAYERS, BLOCK_LAYERS, STAGES)
    if folded_ptr is None:
        embeds += mean
    if vector_ptr is not None:
        vector_at = vector_ptr + k[:, None] * width + columns[None, :]
        tl.store(vector_at, embeds, mask=here[:, None] & inside[None, :])

    for first in range(0, LAYERS, BLOCK_LOGITS):
        logits = first + tl.arange(0, BLOCK_LOGITS).to(tl.int64)
        if first > 0:
            mask = (logits < LAYERS)[:, None] & inside[None, :]
            weight = tl.load(weight_ptr + logits[:, None] * weight_stride + columns[None, :], mask=mask, other=0.0)
        wide = weight.to(ARITHMETIC)
        parts = tl.dot(wide, tl.trans(embeds), input_precision="ieee", out_dtype=ARITHMETIC)  # [BG, BK]
        if folded_ptr is not None:  # F is (d, L): its tile is [BD, BG], read along L
            folded_at = folded_ptr + columns[:, None] * folded_column_stride + logits[None, :] * folded_logit_stride
            tile = tl.load(folded_at, mask=inside[:, None] & (logits < LAYERS)[None, :], other=0.0).to(ARITHMETIC)
            parts = tl.dot(tl.trans(tile), tl.trans(mean), parts, input_precision="ieee", out_dtype=ARITHMETIC)
        partial_at = partial_ptr + (k[None, :] * WIDTH_BLOCKS + block) * LAYERS + logits[:, None]
        tl.store(partial_at, parts, mask=(logits < LAYERS)[:, None] & here[None, :])


@jit(do_not_specialize=["rows"])
def _partial_logits_per_layer_fwd_kernel(
    bank_ptr, embeds_ptr, weight_ptr, folded_ptr, rows_ptr, partial_ptr, vector_ptr,
    bank_layer_stride, bank_row_stride, embeds_stride, weight_stride, rows_stride, folded_layer_stride,
    folded_column_stride, folded_logit_stride,
    rows, width,
    ARITHMETIC: tl.constexpr, LAYERS: tl.constexpr, BLOCK_LAYERS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr, BLOCK_LOGITS: tl.constexpr, WIDTH_BLOCKS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The part of `mean_l (V[l] F[l]) + W e` that a block of columns contributes to one row.

    The arguments are those of `_partial_logits_fwd_kernel`; `vector_ptr` is not written and `BLOCK_ROWS` is 1.
    """
    program = tl.program_id(0).to(tl.int64)
    block = program % WIDTH_BLOCKS
    k = program // WIDTH_BLOCKS
    columns = block * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)  # [BD]
    source, readable = k, width
    if rows_ptr is not None:
        source = tl.load(rows_ptr + k * rows_stride).to(tl.int64)
        readable = tl.where(source >= 0, width, 0)
    inside = columns < readable
    bank_at = bank_ptr + source * bank_row_stride + columns
    embeds = tl.load(embeds_ptr + k * embeds_stride + columns, mask=inside, other=0.0).to(ARITHMETIC)
    for first in range(0, LAYERS, BLOCK_LAYERS):
        logits = first + tl.arange(0, BLOCK_LAYERS).to(tl.int64)  # [BL]
        real = logits < LAYERS
        mask = inside[:, None] & real[None, :]
        weight_at = weight_ptr + logits[:, None] * weight_stride + columns[None, :]
        weight = tl.load(weight_at, mask=real[:, None] & inside[None, :], other=0.0).to(ARITHMETIC)
        folded_at = folded_ptr + columns[:, None] * folded_column_stride + logits[None, :] * folded_logit_stride
        products = tl.zeros((BLOCK_WIDTH, BLOCK_LAYERS), ARITHMETIC)
        layer = tl.zeros((), tl.int64)
        for _ in range(LAYERS):
            row = tl.load(bank_at + layer * bank_layer_stride, mask=inside, other=0.0).to(ARITHMETIC)
            tile = tl.load(folded_at + layer * folded_layer_stride, mask=mask, other=0.0)
            products += tile.to(ARITHMETIC) * (row / LAYERS)[:, None]
            layer += 1
        parts = tl.sum(products, axis=0) + tl.sum(weight * embeds[None, :], axis=1)
        tl.store(partial_ptr + (k * WIDTH_BLOCKS + block) * LAYERS + logits, parts, mask=real)


@jit()
def _choose_fwd_kernel(
    partial_ptr, noise_ptr, bank_ptr, rows_ptr, weights_ptr, soft_ptr, update_ptr,
    noise_stride, bank_layer_stride, bank_row_stride, rows_stride,
    width, temperature,
    ARITHMETIC: tl.constexpr, HARD: tl.constexpr, LAYERS: tl.constexpr, PARTIALS: tl.constexpr,
    BLOCK_LAYERS: tl.constexpr, BLOCK_PARTIALS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, STEPS: tl.constexpr,
    WIDTH_BLOCKS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    k = program // WIDTH_BLOCKS
    block = program % WIDTH_BLOCKS
    layers = tl.arange(0, BLOCK_LAYERS)  # [BL]
    real = layers < LAYERS

    logits = sum_parts(partial_ptr, k, ARITHMETIC, LAYERS, PARTIALS, BLOCK_LAYERS, BLOCK_PARTIALS)
    if noise_ptr is not None:
        logits += tl.load(noise_ptr + k * noise_stride + layers, mask=real, other=0.0).to(ARITHMETIC)
    logits = tl.where(real, logits / temperature, float("-inf"))
    powers = tl.exp(logits - tl.max(logits, axis=0))
    soft = powers / tl.sum(powers, axis=0)
    weights = soft
    if HARD:  # the first maximum; a NaN counts as one, as in torch.argmax
        index = tl.argmax(tl.where(logits != logits, float("inf"), logits), axis=0)
        index = tl.minimum(index, LAYERS - 1).to(tl.int64)
        weights = tl.where(layers == index, 1.0, 0.0).to(ARITHMETIC)
    source, readable = k, width
    if rows_ptr is not None:  # a row that reads none has weights of 0
        source = tl.load(rows_ptr + k * rows_stride).to(tl.int64)
        readable = tl.where(source >= 0, width, 0)
        weights = tl.where(layers < tl.where(source >= 0, LAYERS, 0), weights, 0.0)
    if block == 0:
        tl.store(weights_ptr + k * LAYERS + layers, weights, mask=real)
        if soft_ptr is not None:
            tl.store(soft_ptr + k * LAYERS + layers, soft, mask=real)

    if update_ptr is not None:
        bank_row = bank_ptr + source * bank_row_stride
        for step in range(STEPS):
            columns = (block * STEPS + step) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)  # [BD]
            inside = columns < readable
            if HARD:  # a copy, so that what the other layers hold cannot matter
                update = tl.load(bank_row + index * bank_layer_stride + columns, mask=inside, other=0.0)
            else:
                offsets = layers.to(tl.int64)[:, None] * bank_layer_stride + columns[None, :]
                tile = tl.load(bank_row + offsets, mask=real[:, None] & inside[None, :], other=0.0)
                update = tl.sum(tile.to(ARITHMETIC) * weights[:, None], axis=0)
            tl.store(update_ptr + k * width + columns, update.to(update_ptr.dtype.element_ty), mask=columns < width)


def _partial_logits(
    bank: Tensor, embeds: Tensor, weight: Tensor, bank_weight: Tensor | None, rows: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """The parts of the logits `(K, blocks, L)`, and to `keep` the vector `mean_l V + e` `(K, d)`, if not folded."""
    layers, (count, width) = bank.shape[0], embeds.shape
    wide = wide_dtype(bank.dtype)
    per_layer = bank_weight is not None and bank_weight.ndim == 3
    config = bank_config(layers, count, width, bank.element_size(), gpu(), per_layer)
    partial = empty(bank, (count, config.width_blocks, layers), wide)
    vector = empty(bank, (count, width), wide) if keep and bank_weight is None else None
    embeds, weight = unit_stride(embeds), unit_stride(weight)
    folded_strides = (0, 0) if bank_weight is None else bank_weight.stride()[-2:]
    arguments = {
        "bank_ptr": bank,
        "embeds_ptr": embeds,
        "weight_ptr": weight,
        "folded_ptr": bank_weight,
        "rows_ptr": rows,
        "partial_ptr": partial,
        "vector_ptr": vector,
        "bank_layer_stride": bank.stride(0),
        "bank_row_stride": bank.stride(1),
        "embeds_stride": embeds.stride(0),
        "weight_stride": weight.stride(0),
        "rows_stride": row_stride(rows),
        "folded_layer_stride": bank_weight.stride(0) if bank_weight is not None and per_layer else 0,
        "folded_column_stride": folded_strides[0],
        "folded_logit_stride": folded_strides[1],
        "rows": count,
        "width": width,
        "ARITHMETIC": arithmetic_dtype(bank.dtype),
        "LAYERS": layers,
        **constants(config),
    }
    kernel = _partial_logits_per_layer_fwd_kernel if per_layer else _partial_logits_fwd_kernel
    launch(kernel, (blocks(count, config.block_rows) * config.width_blocks,), **arguments)
    return partial, vector


def forward(
    bank: Tensor,
    embeds: Tensor,
    weight: Tensor,
    noise: Tensor | None,
    temperature: float,
    hard: bool,
    bank_weight: Tensor | None,
    with_update: bool,
    rows: Tensor | None = None,
    keep: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """Update `(K, d)`, weights `(K, L)`, and to `keep` for the backward softmax `(K, L)` and vector `(K, d)`.

    What does not exist is None: the update of `decide`, the softmax of soft weights, the vector of a folded matrix.
    """
    layers, (count, width) = bank.shape[0], embeds.shape
    bank = unit_stride(bank)
    partial, vector = _partial_logits(bank, embeds, weight, bank_weight, rows, keep)
    wide = partial.dtype
    weights = empty(bank, (count, layers), wide)
    soft = empty(bank, (count, layers), wide) if hard and keep else None
    update = empty(bank, (count, width)) if with_update else None
    noise = None if noise is None else unit_stride(noise)
    columns, select = (width, hard) if with_update else (1, True)
    config = output_config(layers, columns, partial.shape[1], select, gpu())
    launch(
        _choose_fwd_kernel, (count * config.width_blocks,),
        partial_ptr=partial, noise_ptr=noise, bank_ptr=bank, rows_ptr=rows, weights_ptr=weights, soft_ptr=soft,
        update_ptr=update,
        noise_stride=row_stride(noise), bank_layer_stride=bank.stride(0),
        bank_row_stride=bank.stride(1), rows_stride=row_stride(rows),
        width=width, temperature=float(temperature),
        ARITHMETIC=arithmetic_dtype(bank.dtype), HARD=hard, LAYERS=layers, PARTIALS=partial.shape[1],
        **constants(config),
    )  # fmt: skip
    return update, weights, soft, vector


__all__ = ["forward", "sum_parts"]
