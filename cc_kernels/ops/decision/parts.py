"""Pieces that the kernels behind `decide` and `connect` share. They are inlined where they are called."""

from __future__ import annotations

from cc_kernels.launch import jit, tl


@jit()
def mean_over_layers(
    bank_at,  # [BK, BD], rows and columns in layer 0
    real,  # [BK, BD], which of them exist
    bank_layer_stride,
    ARITHMETIC: tl.constexpr,
    LAYERS: tl.constexpr,
    BLOCK_LAYERS: tl.constexpr,
):
    """`mean_l V[l]` [BK, BD]. Tiles are added element by element, so that only the last sum crosses threads."""
    layers = tl.arange(0, BLOCK_LAYERS).to(tl.int64)[:, None, None]  # [BL, 1, 1]
    mask = (layers < LAYERS) & real[None, :, :]
    total = tl.load(bank_at[None, :, :] + layers * bank_layer_stride, mask=mask, other=0.0).to(ARITHMETIC)
    for first in range(BLOCK_LAYERS, LAYERS, BLOCK_LAYERS):
        layers = first + tl.arange(0, BLOCK_LAYERS).to(tl.int64)[:, None, None]
        mask = (layers < LAYERS) & real[None, :, :]
        total += tl.load(bank_at[None, :, :] + layers * bank_layer_stride, mask=mask, other=0.0).to(ARITHMETIC)
    return tl.sum(total, axis=0) / LAYERS


@jit()
def sum_parts(
    partial_ptr,
    k,
    ARITHMETIC: tl.constexpr,
    LAYERS: tl.constexpr,
    PARTIALS: tl.constexpr,
    BLOCK_LAYERS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
):
    """`Σ_b partial[k, b]` [BL], always in the same order."""
    layers = tl.arange(0, BLOCK_LAYERS)
    total = tl.zeros((BLOCK_LAYERS,), ARITHMETIC)
    for first in range(0, PARTIALS, BLOCK_PARTIALS):
        parts = first + tl.arange(0, BLOCK_PARTIALS)  # [BP]
        at = partial_ptr + (k * PARTIALS + parts)[:, None] * LAYERS + layers[None, :]
        mask = (parts < PARTIALS)[:, None] & (layers < LAYERS)[None, :]
        total += tl.sum(tl.load(at, mask=mask, other=0.0), axis=0)
    return total


__all__ = ["mean_over_layers", "sum_parts"]
