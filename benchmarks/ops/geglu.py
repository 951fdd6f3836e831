"""`geglu`: forward, its backward alone, and both together, with the tanh GELU of Gemma and with the erf one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.cases import Case, compiled, forward_and_backward
from cc_kernels import geglu, reference
from cc_kernels.aot.floors import Cost, geglu_backward, geglu_forward
from cc_kernels.aot.shapes import ModelShape


def _eager(approximate: str, gate: Tensor, up: Tensor) -> Tensor:
    return F.gelu(gate, approximate=approximate) * up


def _baselines(device: torch.device, approximate: str) -> dict[str, Callable[..., Any]]:
    eager: Callable[..., Any] = partial(_eager, approximate)
    found: dict[str, Callable[..., Any]] = {"eager": eager, "torch.compile": compiled(eager)}
    if device.type == "cpu" or approximate == "none":  # Liger's kernel is a GPU's, and of the tanh form
        return found
    try:
        from liger_kernel.ops.geglu import LigerGELUMulFunction
    except ImportError:
        return found
    return {**found, "liger": LigerGELUMulFunction.apply}


def _cases(tokens: int, inner: int, approximate: str, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Forward, the backward kernel, and both directions."""

    def inputs(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        shape = (2, tokens, inner)
        gate, up = torch.randn(shape, generator=generator, device=device, dtype=dtype).unbind(0)
        return gate.clone().requires_grad_(), up.clone().requires_grad_()

    def backward_inputs(seed: int) -> tuple[Tensor, ...]:
        gate, up = (x.detach() for x in inputs(seed))
        return torch.ones_like(gate), gate, up

    tanh = approximate == "tanh"
    definition: Callable[..., Any] = partial(reference.geglu, tanh=tanh)
    formula: Callable[..., Any] = partial(reference.geglu_backward, tanh=tanh)
    forward, backward = geglu_forward(tokens, inner, dtype.itemsize), geglu_backward(tokens, inner, dtype.itemsize)
    implementations: dict[str, Callable[..., Any]] = {
        "cc_kernels": partial(geglu, approximate=approximate),
        **_baselines(device, approximate),
    }
    name = f"geglu {approximate} {tokens}x{inner}"
    yield Case(f"{name} forward", inputs, definition, implementations, forward)
    kernel: dict[str, Callable[..., Any]] = {"torch.compile": compiled(formula)}
    if device.type == "cuda":
        kernel = {"cc_kernels": partial(torch.ops.cc_kernels.geglu_backward, tanh=tanh), **kernel}
    yield Case(f"{name} backward", backward_inputs, formula, kernel, backward)
    both = {label: forward_and_backward(op) for label, op in implementations.items()}
    total = Cost(forward.bytes + backward.bytes, forward.flops + backward.flops)
    yield Case(f"{name} forward+backward", inputs, forward_and_backward(definition), both, total)


def cases(device: torch.device, dtype: torch.dtype, smoke: bool) -> Iterator[Case]:
    """The intermediate sizes of Gemma-3-4B and Gemma-2-9B."""
    for inner in (96,) if smoke else (10240, 14336):
        yield from _cases(4 if smoke else 4096, inner, "tanh", device, dtype)
    yield from _cases(4 if smoke else 4096, 96 if smoke else 10240, "none", device, dtype)


def model_cases(model: ModelShape, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """One registered model's size with Gemma's GELU: 4,096 tokens on a GPU, 512 on a CPU."""
    yield from _cases(4096 if device.type == "cuda" else 512, model.intermediate, "tanh", device, dtype)
