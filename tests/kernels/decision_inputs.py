"""Inputs for the tests of `decide` and `connect`, and a second, independent composition of them."""

from __future__ import annotations

import torch
from kernel_harness import randn
from torch import Tensor

# layers, rows, width: one layer, one block, several blocks of columns, several blocks of layers, no rows,
# several groups of rows
SHAPES = [(1, 2, 3), (5, 3, 64), (3, 1, 300), (70, 2, 130), (4, 0, 16), (3, 37, 40)]


def inputs(layers: int, rows: int, width: int, dtype: torch.dtype = torch.float32, weight_dtype=None) -> list[Tensor]:
    """Bank, embeddings, weight and noise, all with gradients; logits of order 1."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    bank = randn(layers, rows, width, dtype=dtype)
    embeds = randn(rows, width, dtype=dtype, seed=1)
    weight = randn(layers, width, dtype=weight_dtype or dtype, seed=2, scale=max(width, 1) ** -0.5)
    noise = randn(rows, layers, dtype=wide, seed=3)
    return [tensor.requires_grad_() for tensor in (bank, embeds, weight, noise)]


def folded(layers: int, width: int, per_layer: bool) -> Tensor:
    """A `bank_weight` in fp32."""
    shape = (layers, width, layers) if per_layer else (width, layers)
    return randn(*shape, seed=4, scale=max(width, 1) ** -0.5).requires_grad_()


def composition(bank, embeds, weight, noise=None, temperature=1.0, hard=True, bank_weight=None):
    """`connect` by the straight-through identity `hard + soft − soft.detach()` and a plain sum."""
    mean = bank.mean(0)
    if bank_weight is None:
        logits = torch.stack([((mean + embeds) * row).sum(-1) for row in weight], dim=-1)
    else:
        per_layer = bank_weight if bank_weight.ndim == 3 else bank_weight.expand(bank.shape[0], *bank_weight.shape)
        logits = sum(v @ f for v, f in zip(bank, per_layer)) / bank.shape[0] + embeds @ weight.T
    if noise is not None:
        logits = logits + noise
    weights = torch.softmax(logits / temperature, dim=-1)
    if hard:
        one_hot = torch.nn.functional.one_hot(weights.argmax(-1), bank.shape[0]).to(weights.dtype)
        weights = one_hot + weights - weights.detach()
    return (weights.T[:, :, None] * bank).sum(0), weights
