"""`swiglu`: forward, its backward alone, and both together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.cases import Case, compiled, forward_and_backward
from cc_kernels import reference, swiglu
from cc_kernels.aot.floors import Cost, swiglu_backward, swiglu_forward
from cc_kernels.aot.shapes import ModelShape


def _eager(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def _baselines(device: torch.device) -> dict[str, Callable[..., Any]]:
    found = {"eager": _eager, "torch.compile": compiled(_eager)}
    if device.type == "cpu":  # Liger's kernel has no implementation for it
        return found
    try:
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction
    except ImportError:
        return found
    return {**found, "liger": LigerSiLUMulFunction.apply}


def _backward_formula(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    wide, sigmoid = gate.float(), torch.sigmoid(gate.float())
    grad_gate = grad.float() * up.float() * sigmoid * (1 + wide * (1 - sigmoid))
    return grad_gate.to(gate.dtype), (grad.float() * wide * sigmoid).to(gate.dtype)


def _cases(tokens: int, inner: int, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Whole tensors, the halves of one projection, the backward kernel, and both directions."""

    def inputs(seed: int, halves: bool = False) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        both = torch.randn(tokens, 2 * inner, generator=generator, device=device, dtype=dtype)
        gate, up = both.chunk(2, dim=-1)
        if not halves:
            gate, up = gate.contiguous(), up.contiguous()
        return gate.requires_grad_(), up.requires_grad_()

    def backward_inputs(seed: int) -> tuple[Tensor, ...]:
        gate, up = (x.detach() for x in inputs(seed))
        return torch.ones_like(gate), gate, up

    size = dtype.itemsize
    forward, backward = swiglu_forward(tokens, inner, size), swiglu_backward(tokens, inner, size)
    implementations = {"cc_kernels": swiglu, **_baselines(device)}
    name = f"swiglu {tokens}x{inner}"
    strided = partial(inputs, halves=True)
    yield Case(f"{name} forward", inputs, reference.swiglu, implementations, forward)
    yield Case(f"{name} forward, halves", strided, reference.swiglu, implementations, forward)
    kernel = {"torch.compile": compiled(_backward_formula)}
    if device.type == "cuda":
        kernel = {"cc_kernels": torch.ops.cc_kernels.swiglu_backward, **kernel}
    yield Case(f"{name} backward", backward_inputs, _backward_formula, kernel, backward)
    both = {label: forward_and_backward(op) for label, op in implementations.items()}
    total = Cost(forward.bytes + backward.bytes, forward.flops + backward.flops)
    yield Case(f"{name} forward+backward", inputs, forward_and_backward(reference.swiglu), both, total)


def cases(device: torch.device, dtype: torch.dtype, smoke: bool) -> Iterator[Case]:
    """The intermediate sizes of Llama-3.1-8B and Qwen2.5-7B, on tensors of at least 64 MiB."""
    for inner in (96,) if smoke else (14336, 18944):
        yield from _cases(4 if smoke else 4096, inner, device, dtype)


def model_cases(model: ModelShape, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """One registered model: 4,096 tokens on a GPU, 512 on a CPU."""
    yield from _cases(4096 if device.type == "cuda" else 512, model.intermediate, device, dtype)
