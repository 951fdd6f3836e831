"""The backward kernels of `decide` and `connect`, and their launchers.

With ∂u = ∂update, ∂w = ∂weights and y the softmax, straight-through or not:

    ∂w[k,l] += ∂u[k] · V[l,k]                                    `_mix_bwd_kernel`, parts per block of columns
    ∂z[k]    = y[k] (∂w[k] − Σ_l y[k,l] ∂w[k,l]) / τ             `_columns_bwd_kernel`, this and the next three
    ∂e[k]    = ∂z[k] W
    ∂V[l,k]  = ∂e[k] / L + w[k,l] ∂u[k]
    ∂W       = ∂zᵀ v, v = mean_l V + e saved by the forward
    ∂V[l,p]  = Σ of ∂V[l,k] over the k with rows[k] = p          `_bank_rows_bwd_kernel`, with `rows`

Each program of columns works out ∂z again from a few KB in L2; past 64 rows or layers `_logits_bwd_kernel` does it.

Bytes moved: the bank, W and v once, ∂V once where it is wanted. A folded `bank_weight` has plain matmuls for gradients.
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
    power_of_two,
    prepared,
    row_stride,
    tl,
    unit_stride,
)
from cc_kernels.ops.decision.config import MOST_REPEATED_ROWS, columns_config, mix_config, output_config
from cc_kernels.reference import wide_dtype


@jit()
def _mix_bwd_kernel(
    grad_update_ptr, bank_ptr, rows_ptr, partial_ptr,
    grad_update_stride, bank_layer_stride, bank_row_stride, rows_stride,
    width,
    ARITHMETIC: tl.constexpr, LAYERS: tl.constexpr, LAYER_BLOCKS: tl.constexpr,
    BLOCK_LAYERS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, STEPS: tl.constexpr, PARTS: tl.constexpr,
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
    for step in range(STEPS):
        columns = (part * STEPS + step) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)  # [BD]
        inside = columns < readable
        grad = tl.load(grad_update_ptr + k * grad_update_stride + columns, mask=inside, other=0.0).to(ARITHMETIC)
        tile = tl.load(row_at + columns[None, :], mask=(layers < LAYERS)[:, None] & inside[None, :], other=0.0)
        products += tile.to(ARITHMETIC) * grad[None, :]
    tl.store(partial_ptr + (k * PARTS + part) * LAYERS + layers, tl.sum(products, axis=1), mask=layers < LAYERS)


@jit()
def _logits_gradient(
    partial_ptr, grad_weights_ptr, soft_ptr, rows_ptr,
    grad_weights_stride, rows_stride,
    k, rows, temperature,
    ARITHMETIC: tl.constexpr, LAYERS: tl.constexpr, PARTIALS: tl.constexpr, BLOCK_LAYERS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """`∂z[k]` [BK, BL], from the parts of `∂u[k] · V[l]` and the gradient given for the weights, either may be None."""
    layers = tl.arange(0, BLOCK_LAYERS)[None, :]
    at, mask = k[:, None], (k < rows)[:, None] & (layers < LAYERS)
    grad_weights = tl.zeros((BLOCK_ROWS, BLOCK_LAYERS), ARITHMETIC)
    if partial_ptr is not None:
        for part in range(PARTIALS):  # always in the same order
            grad_weights += tl.load(partial_ptr + (at * PARTIALS + part) * LAYERS + layers, mask=mask, other=0.0)
    if grad_weights_ptr is not None:
        given = tl.load(grad_weights_ptr + at * grad_weights_stride + layers, mask=mask, other=0.0)
        grad_weights += given.to(ARITHMETIC)
    soft = tl.load(soft_ptr + at * LAYERS + layers, mask=mask, other=0.0)
    grad_logits = soft * (grad_weights - tl.sum(soft * grad_weights, axis=1)[:, None]) / temperature
    if rows_ptr is not None:  # a row that reads none has gradients of 0, whatever arrives for it
        reads = tl.load(rows_ptr + k * rows_stride, mask=k < rows, other=-1) >= 0
        grad_logits = tl.where(reads[:, None], grad_logits, 0.0)
    return grad_logits


@jit(do_not_specialize=["rows"])
def _logits_bwd_kernel(
    partial_ptr, grad_weights_ptr, soft_ptr, rows_ptr, grad_logits_ptr,
    grad_weights_stride, rows_stride,
    rows, temperature,
    ARITHMETIC: tl.constexpr, LAYERS: tl.constexpr, PARTIALS: tl.constexpr, BLOCK_LAYERS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """∂z of one group of rows, for batches so large that every program of the next launch must not repeat it."""
    k = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)  # [BK]
    layers = tl.arange(0, BLOCK_LAYERS)  # [BL]
    grad_logits = _logits_gradient(
        partial_ptr, grad_weights_ptr, soft_ptr, rows_ptr, grad_weights_stride, rows_stride, k, rows, temperature,
        ARITHMETIC, LAYERS, PARTIALS, BLOCK_LAYERS, BLOCK_ROWS,
    )  # fmt: skip
    mask = (k < rows)[:, None] & (layers < LAYERS)[None, :]
    tl.store(grad_logits_ptr + k[:, None] * LAYERS + layers[None, :], grad_logits, mask=mask)


@jit()
def _store_bank_gradient(
    grad_bank_ptr, grad_vector, weights_ptr, grad_update_ptr, k, columns, here, rows, width,
    grad_update_stride, ARITHMETIC: tl.constexpr, LAYERS: tl.constexpr,
):  # fmt: skip
    """`∂V[l,k] = ∂e[k] / L + w[k,l] ∂u[k]` for one tile [BK, BD] of each layer, where row k reads its own."""
    through_mean = grad_vector / LAYERS
    if grad_update_ptr is not None:
        update_at = grad_update_ptr + k[:, None] * grad_update_stride + columns[None, :]
        grad_update = tl.load(update_at, mask=here, other=0.0).to(ARITHMETIC)
    at = grad_bank_ptr + k[:, None] * width + columns[None, :]
    for layer in range(LAYERS):
        grad_bank = through_mean
        if grad_update_ptr is not None:  # a weight of 0 is chosen by where: 0 · inf is no zero
            share = tl.load(weights_ptr + k * LAYERS + layer, mask=k < rows, other=0.0)[:, None]
            grad_bank = grad_bank + tl.where(share != 0.0, share * grad_update, 0.0)
        tl.store(at, grad_bank, mask=here)
        at += rows.to(tl.int64) * width


@jit(do_not_specialize=["rows"])
def _columns_bwd_kernel(
    partial_ptr, grad_weights_ptr, soft_ptr, weights_ptr, grad_update_ptr, weight_ptr, vector_ptr, rows_ptr,
    grad_logits_ptr, grad_embeds_ptr, grad_bank_ptr, grad_weight_ptr,
    grad_weights_stride, grad_update_stride, weight_stride, rows_stride,
    width, rows, temperature,
    ARITHMETIC: tl.constexpr, LAYERS: tl.constexpr, PARTIALS: tl.constexpr, KNOWN: tl.constexpr,
    BLOCK_LAYERS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """All gradients in one block of columns, over all rows; with several blocks of layers, ∂W of one of them.

    ∂z is worked out on the way, for all layers at once, unless it is `KNOWN`.
    """
    columns = tl.program_id(0).to(tl.int64) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)  # [BD]
    layers = tl.program_id(1).to(tl.int64) * BLOCK_LAYERS + tl.arange(0, BLOCK_LAYERS)  # [BL]
    inside, of_weight = columns < width, (layers < LAYERS)[:, None] & (columns < width)[None, :]
    weight_at = weight_ptr + layers[:, None] * weight_stride + columns[None, :]
    weight = tl.load(weight_at, mask=of_weight, other=0.0).to(ARITHMETIC)  # [BL, BD]
    grad_weight = tl.zeros((BLOCK_LAYERS, BLOCK_WIDTH), ARITHMETIC)
    first = 0
    while first < rows:
        k = first + tl.arange(0, BLOCK_ROWS).to(tl.int64)  # [BK]
        at, here = k[:, None] * width + columns[None, :], (k < rows)[:, None] & inside[None, :]  # [BK, BD]
        logits_at = grad_logits_ptr + k[:, None] * LAYERS + layers[None, :]  # [BK, BL]
        if KNOWN:
            grad_logits = tl.load(logits_at, mask=(k < rows)[:, None] & (layers < LAYERS)[None, :], other=0.0)
        else:
            grad_logits = _logits_gradient(
                partial_ptr, grad_weights_ptr, soft_ptr, rows_ptr, grad_weights_stride, rows_stride, k, rows,
                temperature, ARITHMETIC, LAYERS, PARTIALS, BLOCK_LAYERS, BLOCK_ROWS,
            )  # fmt: skip
            mine = k < tl.where(tl.program_id(0) == 0, rows, 0)
            tl.store(logits_at, grad_logits, mask=mine[:, None] & (layers < LAYERS)[None, :])
        if vector_ptr is not None:
            vector = tl.load(vector_ptr + at, mask=here, other=0.0)
            across = tl.trans(grad_logits)
            grad_weight = tl.dot(across, vector, grad_weight, input_precision="ieee", out_dtype=ARITHMETIC)
        if tl.program_id(1) == 0:
            grad_vector = tl.dot(grad_logits, weight, input_precision="ieee", out_dtype=ARITHMETIC)  # [BK, BD]
            for start in range(BLOCK_LAYERS, LAYERS, BLOCK_LAYERS):  # only where ∂z is known
                more = (layers + start < LAYERS)[None, :] & (k < rows)[:, None]
                others = tl.load(logits_at + start, mask=more, other=0.0)
                below = (layers + start < LAYERS)[:, None] & inside[None, :]
                tile = tl.load(weight_at + start * weight_stride, mask=below, other=0.0).to(ARITHMETIC)
                grad_vector = tl.dot(others, tile, grad_vector, input_precision="ieee", out_dtype=ARITHMETIC)
            if grad_embeds_ptr is not None:
                tl.store(grad_embeds_ptr + at, grad_vector, mask=here)
            if grad_bank_ptr is not None:
                _store_bank_gradient(
                    grad_bank_ptr, grad_vector, weights_ptr, grad_update_ptr, k, columns, here, rows, width,
                    grad_update_stride, ARITHMETIC, LAYERS,
                )  # fmt: skip
        first += BLOCK_ROWS
    if vector_ptr is not None:
        at = layers[:, None] * width + columns[None, :]
        tl.store(grad_weight_ptr + at, grad_weight.to(grad_weight_ptr.dtype.element_ty), mask=of_weight)


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
        rows_stride=row_stride(rows), width=width,
        ARITHMETIC=arithmetic_dtype(bank.dtype), LAYERS=layers, LAYER_BLOCKS=layer_blocks, **constants(config),
    )  # fmt: skip
    return partial


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
        rows_ptr=rows, grad_bank_ptr=grad_bank, grad_update_stride=row_stride(grad_update),
        weight_stride=weight.stride(0), rows_stride=rows.stride(0), grad_bank_layer_stride=grad_bank.stride(0),
        width=width, rows=rows.shape[0],
        ARITHMETIC=arithmetic_dtype(grad_bank.dtype), LAYERS=layers, BLOCK_LAYERS=config.block_layers,
        BLOCK_WIDTH=config.block_width, WIDTH_BLOCKS=width_blocks, num_warps=config.num_warps,
    )  # fmt: skip


@prepared
def backward(
    grad_update: Tensor | None, grad_weights: Tensor | None, bank: Tensor, weight: Tensor, weights: Tensor,
    soft: Tensor, vector: Tensor | None, temperature: float, want_bank: bool, want_embeds: bool,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of logits `(K, L)`, embeddings `(K, d)`, bank and W (empty where not wanted).

    That of W is wanted where the `vector` that the forward saved is given.
    """
    (count, layers), width = weights.shape, bank.shape[2]
    bank, weight = unit_stride(bank), unit_stride(weight)
    grad_update = None if grad_update is None else unit_stride(grad_update)
    grad_weights = None if grad_weights is None else unit_stride(grad_weights)
    grad_logits = empty(weights, weights.shape)
    grad_embeds = empty(bank, (count, width) if want_embeds else (0,))
    grad_bank = empty(bank, bank.shape if want_bank else (0,))
    grad_weight = empty(weight, (0,) if vector is None else weight.shape)
    partial = None if grad_update is None else _mix_gradient(grad_update, bank, rows)
    config = columns_config(layers, width, gpu())
    incoming = {
        "partial_ptr": partial, "grad_weights_ptr": grad_weights, "soft_ptr": soft, "rows_ptr": rows,
        "grad_logits_ptr": grad_logits, "grad_weights_stride": row_stride(grad_weights),
        "rows_stride": row_stride(rows), "rows": count, "temperature": float(temperature), "LAYERS": layers,
        "ARITHMETIC": arithmetic_dtype(bank.dtype), "PARTIALS": 0 if partial is None else partial.shape[1],
    }  # fmt: skip
    known = count > MOST_REPEATED_ROWS or config.block_layers < layers
    if known:
        sizes = {"BLOCK_LAYERS": power_of_two(layers), "BLOCK_ROWS": config.block_rows, "num_warps": config.num_warps}
        launch(_logits_bwd_kernel, (blocks(count, config.block_rows),), **incoming, **sizes)
    own_rows = want_bank and rows is None  # otherwise several rows may share one of the bank
    columns = width if own_rows or want_embeds or vector is not None else 1
    layer_blocks = 1 if vector is None else blocks(layers, config.block_layers)
    launch(
        _columns_bwd_kernel, (max(blocks(columns, config.block_width), 1), layer_blocks),
        weights_ptr=weights, grad_update_ptr=grad_update, weight_ptr=weight, vector_ptr=vector,
        grad_embeds_ptr=grad_embeds if want_embeds else None, grad_bank_ptr=grad_bank if own_rows else None,
        grad_weight_ptr=grad_weight, grad_update_stride=row_stride(grad_update), weight_stride=weight.stride(0),
        width=width, KNOWN=known, **incoming, **constants(config),
    )  # fmt: skip
    if want_bank and rows is not None:
        _bank_gradient(grad_logits, weights, grad_update, weight, rows, grad_bank)
    return grad_logits, grad_embeds, grad_bank, grad_weight


__all__ = ["backward"]
