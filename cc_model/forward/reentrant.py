"""Reentrant gradient checkpointing, and how the update's gradient gets through it.

This kind of checkpointing runs the layers without a graph. In the backward it runs them again, with a graph, and calls
a backward of its own inside the outer one. That inner backward would run on from the update into the Decision Maker
and the embedding. The embedding's gradient would then come in two parts, and DDP reduces the first alone. So the layers
get a leaf in the update's place. The inner backward ends at the leaf, which collects the gradient. The outer backward
reaches the embeddings when it is done with all layers, and hands what the leaf collected on to the update.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def uses_reentrant_checkpointing(body: Any) -> bool:
    """Whether the body's layers run under transformers' reentrant gradient checkpointing."""
    decoder = getattr(body, "language_model", body)  # the text decoder among several modalities
    if not (getattr(decoder, "gradient_checkpointing", False) and body.training):
        return False
    checkpoint = getattr(decoder, "_gradient_checkpointing_func", None)
    return bool(getattr(checkpoint, "keywords", {}).get("use_reentrant", False))


def carried(embeds: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
    """`embeds`, which carry the update's gradient on in the backward, and the leaf that stands for `update`."""
    leaf = update.detach().requires_grad_()
    return _Carry.apply(embeds, update, (leaf,)), leaf


class _Carry(torch.autograd.Function):
    """`embeds` handed on; in the backward, `update` gets the gradient that `leaf` collected."""

    @staticmethod
    def forward(ctx: Any, embeds: Tensor, update: Tensor, leaf: tuple[Tensor]) -> Tensor:
        ctx.leaf = leaf
        return embeds.view_as(embeds)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (leaf,) = ctx.leaf
        collected, leaf.grad = leaf.grad, None  # a second backward starts from nothing
        return gradient, collected, None
