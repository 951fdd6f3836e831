"""`gate_up_swiglu`: gate and up projections of a few tokens, beside library matmuls with the elementwise part."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.cases import Case, compiled
from cc_kernels import gate_up_swiglu as _op  # the function; gate_up_kernel calls it at any number of rows
from cc_kernels import reference, swiglu, use_backend
from cc_kernels.aot.floors import gate_up_swiglu_forward
from cc_kernels.aot.shapes import MODELS, ModelShape
from cc_kernels.launch import INTERPRETED


def gate_up_kernel(x: Tensor, w_gate: Tensor, w_up: Tensor) -> Tensor:
    """The op with its kernel also beyond the number of rows up to which the `auto` backend chooses it."""
    with use_backend("triton" if x.device.type != "cpu" or INTERPRETED else "auto"):
        return _op(x, w_gate, w_up)


def _two_matmuls(x: Tensor, w_gate: Tensor, w_up: Tensor) -> Tensor:
    return swiglu(F.linear(x, w_gate), F.linear(x, w_up))


def _one_matmul(x: Tensor, w_gate: Tensor, w_up: Tensor) -> Tensor:
    """One product with the concatenated weights, as servers store them: the inputs are the halves of one tensor."""
    both = w_gate.as_strided((2 * w_gate.shape[0], w_gate.shape[1]), w_gate.stride())
    gate, up = F.linear(x, both).chunk(2, dim=-1)
    return swiglu(gate, up)


def _case(rows: int, inner: int, width: int, device: torch.device, dtype: torch.dtype, compile_eager: bool) -> Case:
    def inputs(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        x = torch.randn(rows, width, generator=generator, device=device, dtype=dtype)
        both = torch.randn(2 * inner, width, generator=generator, device=device, dtype=dtype) * width**-0.5
        return (x, *both.chunk(2))

    implementations = {
        "cc_kernels": gate_up_kernel,
        "two matmuls + swiglu": _two_matmuls,
        "one concatenated matmul + swiglu": _one_matmul,
    }
    if compile_eager:
        implementations["torch.compile"] = compiled(reference.gate_up_swiglu)
    cost = gate_up_swiglu_forward(rows, width, inner, dtype.itemsize)
    name = f"gate_up_swiglu {rows} of {inner}x{width}"
    return Case(name, inputs, reference.gate_up_swiglu, implementations, cost, reads=True)


def _shapes(smoke: bool) -> tuple[tuple[ModelShape, tuple[int, ...]], ...]:
    if smoke:
        return ((ModelShape("tiny", layers=2, hidden=64, intermediate=96), (2,)),)
    by_name = {model.name: model for model in MODELS}
    return (
        (by_name["Llama-3.1-8B"], (1, 16, 8, 32, 64)),
        (by_name["Llama-3.2-1B"], (1, 16)),
        (by_name["Qwen2.5-7B"], (1, 16)),
    )


def cases(device: torch.device, dtype: torch.dtype, smoke: bool) -> Iterator[Case]:
    """1 to 64 tokens of Llama-3.1-8B, where the threshold is read off; 1 and 16 tokens of two other models."""
    for model, tokens in _shapes(smoke):
        for rows in tokens:  # compiled for one of them, because each shape costs compile time
            yield _case(rows, model.intermediate, model.hidden, device, dtype, compile_eager=rows == 16)


def model_cases(model: ModelShape, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """One registered model, with one and with sixteen tokens."""
    for rows in (1, 16):
        yield _case(rows, model.intermediate, model.hidden, device, dtype, compile_eager=True)
