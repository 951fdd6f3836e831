"""`connect`: decision and selection, forward and with the backward, without and with a gradient for the bank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case, compiled, forward_and_backward
from cc_kernels import connect, reference
from cc_kernels.aot.floors import Cost, connect_backward, connect_forward
from cc_kernels.aot.shapes import LARGEST, MODELS, ModelShape

ROWS = 16


def _hooks(bank: Tensor, embeds: Tensor, weight: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """What forward hooks with ordinary tensor code do: a list of captures, stacked, and a straight-through sum."""
    captured = torch.stack(list(bank), dim=1).float()  # (K, L, d)
    logits = (captured.mean(1) + embeds.float()) @ weight.float().T + noise
    soft = torch.softmax(logits, dim=-1)
    hard = torch.zeros_like(soft).scatter_(1, soft.argmax(-1, keepdim=True), 1.0)
    weights = hard - soft.detach() + soft
    return (weights[:, :, None] * captured).sum(1).to(bank.dtype), weights


def _shapes(smoke: bool) -> tuple[tuple[ModelShape, int], ...]:
    if smoke:
        return ((ModelShape("tiny", layers=3, hidden=64, intermediate=0), 2),)
    llama = next(model for model in MODELS if model.name == "Llama-3.1-8B")
    large = next(model for model in MODELS if model.name == "Llama-3.1-70B")
    return ((llama, ROWS), (llama, 1), (large, ROWS), (LARGEST, ROWS))


def cases(device: torch.device, dtype: torch.dtype, smoke: bool) -> Iterator[Case]:
    """Llama-3.1-8B with 16 and 1 rows, Llama-3.1-70B, and the largest shape."""
    for model, rows in _shapes(smoke):
        layers, width = model.layers, model.hidden

        def inputs(
            seed: int, bank_gradient: bool = False, layers: int = layers, rows: int = rows, width: int = width
        ) -> tuple[Any, ...]:
            generator = torch.Generator(device).manual_seed(seed)

            def randn(*shape: int, dtype: torch.dtype = dtype, scale: float = 1.0) -> Tensor:
                return torch.randn(shape, generator=generator, device=device, dtype=dtype) * scale

            bank = randn(layers, rows, width).requires_grad_(bank_gradient)
            weight = randn(layers, width, scale=width**-0.5).requires_grad_()
            # one layer far ahead, so that rounding cannot change the choice
            noise = randn(rows, layers, dtype=torch.float32)
            noise[torch.arange(rows), torch.arange(rows) % layers] += 20.0
            return bank, randn(rows, width).requires_grad_(), weight, noise

        implementations = {"cc_kernels": connect, "eager hooks": _hooks, "eager reference": reference.connect}
        if rows > 1 and layers < 64:  # each shape costs compile time
            implementations["torch.compile of hooks"] = compiled(_hooks)
        forward = connect_forward(layers, rows, width, dtype.itemsize)
        name = f"connect L={layers} K={rows} d={width}"
        yield Case(f"{name} forward", inputs, reference.connect, implementations, forward)
        for bank_gradient in (False, True):

            def with_gradient(seed: int, inputs: Any = inputs, bank_gradient: bool = bank_gradient) -> tuple[Any, ...]:
                return inputs(seed, bank_gradient)

            backward = connect_backward(layers, rows, width, dtype.itemsize, bank_gradient)
            total = Cost(forward.bytes + backward.bytes, forward.flops + backward.flops)
            both = {label: forward_and_backward(op) for label, op in implementations.items()}
            reference_both = forward_and_backward(reference.connect)
            label = f"{name} forward+backward" + (", bank too" if bank_gradient else "")
            yield Case(label, with_gradient, reference_both, both, total)
