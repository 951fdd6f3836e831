"""Pieces that the kernels behind `decide` and `connect` share. They are inlined where they are called."""

from __future__ import annotations

from cc_kernels.launch import jit, tl


@jit()
def mean_over_layers(
    bank_at,  # [BD], the columns in layer 0
    inside,  # [BD], which of them exist
    bank_layer_stride,
    ARITHMETIC: tl.constexpr,
    LAYERS: tl.constexpr,
    BLOCK_LAYERS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """`mean_l V[l]` [BD]."""
    total = tl.zeros((BLOCK_WIDTH,), ARITHMETIC)
    for first in range(0, LAYERS, BLOCK_LAYERS):
        layers = first + tl.arange(0, BLOCK_LAYERS).to(tl.int64)  # [BL]
        mask = (layers < LAYERS)[:, None] & inside[None, :]
        tile = tl.load(bank_at[None, :] + layers[:, None] * bank_layer_stride, mask=mask, other=0.0)
        total += tl.sum(tile.to(ARITHMETIC), axis=0)
    return total / LAYERS


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
