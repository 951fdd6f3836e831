"""`connect`: decision and selection, forward and with the backward, without and with a gradient for the bank."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.baselines.hooks import decide_and_select
from benchmarks.ops.cases import Case, backward_only, compiled, forward_and_backward
from cc_kernels import connect, reference
from cc_kernels.aot.floors import Cost, connect_backward, connect_forward
from cc_kernels.aot.shapes import LARGEST, MODELS, ModelShape

ROWS = 16


def decision_inputs(
    seed: int,
    layers: int,
    rows: int,
    width: int,
    device: torch.device,
    dtype: torch.dtype,
    bank_gradient: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bank, embeddings, W and noise; one layer is far ahead, so that rounding cannot change the choice."""
    generator = torch.Generator(device).manual_seed(seed)
    randn = partial(torch.randn, generator=generator, device=device)
    bank = randn(layers, rows, width, dtype=dtype).requires_grad_(bank_gradient)
    weight = (randn(layers, width, dtype=dtype) * width**-0.5).requires_grad_()
    noise = randn(rows, layers)
    noise[torch.arange(rows), torch.arange(rows) % layers] += 20.0
    return bank, randn(rows, width, dtype=dtype).requires_grad_(), weight, noise


def _cases(
    model: ModelShape, rows: int, device: torch.device, dtype: torch.dtype, compile_hooks: bool, alone: bool
) -> Iterator[Case]:
    """Forward, and forward with backward without and with a gradient for the bank; with `alone` also the backward."""
    layers, width = model.layers, model.hidden
    inputs = partial(decision_inputs, layers=layers, rows=rows, width=width, device=device, dtype=dtype)
    implementations = {"cc_kernels": connect, "eager hooks": decide_and_select, "eager reference": reference.connect}
    if compile_hooks:
        implementations["torch.compile of hooks"] = compiled(decide_and_select)
    forward = connect_forward(layers, rows, width, dtype.itemsize)
    name = f"connect L={layers} K={rows} d={width}"
    yield Case(f"{name} forward", inputs, reference.connect, implementations, forward)
    both = {label: forward_and_backward(op) for label, op in implementations.items()}
    backwards = {label: backward_only(op) for label, op in implementations.items()}
    for bank_gradient in (False, True):
        backward = connect_backward(layers, rows, width, dtype.itemsize, bank_gradient)
        total = Cost(forward.bytes + backward.bytes, forward.flops + backward.flops)
        given = partial(inputs, bank_gradient=bank_gradient)
        suffix = ", bank too" if bank_gradient else ""
        if alone:
            expected = backward_only(reference.connect)
            yield Case(f"{name} backward{suffix}", given, expected, {}, backward, backwards)
        expected = forward_and_backward(reference.connect)
        yield Case(f"{name} forward+backward{suffix}", given, expected, both, total)


def _shapes(smoke: bool) -> tuple[tuple[ModelShape, int], ...]:
    if smoke:
        return ((ModelShape("tiny", layers=3, hidden=64, intermediate=0), 2),)
    llama = next(model for model in MODELS if model.name == "Llama-3.1-8B")
    large = next(model for model in MODELS if model.name == "Llama-3.1-70B")
    return ((llama, ROWS), (llama, 1), (large, ROWS), (LARGEST, ROWS))


def cases(device: torch.device, dtype: torch.dtype, smoke: bool) -> Iterator[Case]:
    """Llama-3.1-8B with 16 and 1 rows, Llama-3.1-70B, and the largest shape."""
    for model, rows in _shapes(smoke):
        compile_hooks = rows > 1 and model.layers < 64  # each shape costs compile time
        yield from _cases(model, rows, device, dtype, compile_hooks, alone=False)


def model_cases(model: ModelShape, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """One registered model with sixteen rows."""
    yield from _cases(model, ROWS, device, dtype, compile_hooks=True, alone=True)
