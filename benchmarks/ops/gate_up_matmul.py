"""The candidate `benchmarks.candidates.gate_up_matmul` beside library matmuls with the elementwise part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.candidates.gate_up_matmul import gate_up_matmul, gate_up_matmul_backward
from benchmarks.ops.cases import Case, compiled
from cc_kernels import reference, swiglu
from cc_kernels.aot.floors import Cost
from cc_kernels.aot.shapes import MODELS, ModelShape
from cc_kernels.launch import INTERPRETED
from cc_kernels.ops.swiglu import _swiglu_backward


def _library(x: Tensor, w_gate: Tensor, w_up: Tensor) -> tuple[Tensor, ...]:
    """The training forward: gate and up are kept."""
    gate, up = F.linear(x, w_gate), F.linear(x, w_up)
    return swiglu(gate, up), gate, up


def _library_backward(grad: Tensor, w_down: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    inner = grad @ w_down
    if inner.device.type != "cpu" or INTERPRETED:
        return _swiglu_backward(inner, gate, up)
    return _reference_backward(grad, w_down, gate, up)


def _reference_backward(grad: Tensor, w_down: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaves = gate.detach().requires_grad_(), up.detach().requires_grad_()
        grads = torch.autograd.grad(reference.swiglu(*leaves), leaves, grad @ w_down)
    return grads[0], grads[1]


def _cases(tokens: int, model: ModelShape, device: torch.device, dtype: torch.dtype, kernels: bool) -> Iterator[Case]:
    width, inner, size = model.hidden, model.intermediate, dtype.itemsize

    def randn(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype) * scale

    def forward_inputs(seed: int) -> tuple[Tensor, ...]:
        made = torch.Generator(device).manual_seed(seed)
        weights = [randn(made, inner, width, scale=width**-0.5) for _ in range(2)]
        return (randn(made, tokens, width), *weights)

    def backward_inputs(seed: int) -> tuple[Tensor, ...]:
        made = torch.Generator(device).manual_seed(seed)
        w_down = randn(made, width, inner, scale=inner**-0.5)
        return randn(made, tokens, width), w_down, randn(made, tokens, inner), randn(made, tokens, inner)

    flops = 4 * tokens * width * inner
    inputs, result = (tokens * width + 2 * inner * width) * size, tokens * inner * size
    ours: dict[str, Any] = {}
    if kernels:
        ours["candidate"] = lambda x, w_gate, w_up: gate_up_matmul(x, w_gate, w_up)[0]
    implementations = {
        **ours,
        "two matmuls + swiglu": lambda *a: _library(*a)[0],
        "torch.compile": compiled(reference.gate_up_swiglu),
    }
    label = f"{tokens} tokens of {inner}x{width}"
    cost = Cost(inputs + result, flops)
    yield Case(f"gate_up_matmul prefill, {label}", forward_inputs, reference.gate_up_swiglu, implementations, cost)
    if kernels:
        ours["candidate"] = lambda x, w_gate, w_up: gate_up_matmul(x, w_gate, w_up, keep=True)
    cost = Cost(inputs + 3 * result, flops)
    implementations = {**ours, "two matmuls + swiglu": _library}
    yield Case(f"gate_up_matmul training, {label}", forward_inputs, _library, implementations, cost)
    if kernels:
        ours["candidate"] = gate_up_matmul_backward
    cost = Cost((tokens * width + inner * width) * size + 4 * result, 2 * tokens * width * inner)
    implementations = {**ours, "matmul + swiglu": _library_backward}
    yield Case(f"gate_up_matmul backward, {label}", backward_inputs, _reference_backward, implementations, cost)


def cases(device: torch.device, dtype: torch.dtype, smoke: bool) -> Iterator[Case]:
    """4,096 and 512 tokens of Llama-3.1-8B, 4,096 of Llama-3.2-1B."""
    if smoke:
        tiny = ModelShape("tiny", layers=2, hidden=64, intermediate=96)
        yield from _cases(4, tiny, device, dtype, kernels=INTERPRETED)
        return
    by_name = {model.name: model for model in MODELS}
    for name, tokens in (("Llama-3.1-8B", 4096), ("Llama-3.1-8B", 512), ("Llama-3.2-1B", 4096)):
        yield from _cases(tokens, by_name[name], device, dtype, kernels=device.type == "cuda")
