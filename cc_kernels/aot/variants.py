"""The launches that the listed model shapes lead to, recorded from the ops' own launchers on `meta` tensors.

Because the launchers themselves are asked, a configuration that a heuristic can choose cannot be missing here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from cc_kernels.aot.compiling import Report, inspect, specialize
from cc_kernels.aot.shapes import LARGEST, MODELS, ModelShape
from cc_kernels.aot.targets import TARGETS
from cc_kernels.launch import H100, Gpu, Launch, recorded

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOKENS = 4096  # of a training step; one token stands for decoding
# Prompts in a batch: the heuristics change between powers of two, Triton specialises on 1 and on multiples of 16.
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def _op_module(op: str) -> Any:
    return import_module(f"cc_kernels.ops.{op}")


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _swiglu(model: ModelShape, dtype: torch.dtype, batches: tuple[int, ...]) -> None:
    op = _op_module("swiglu")
    for tokens in (1, TOKENS):
        whole = _empty(tokens, model.intermediate, dtype=dtype)
        halves = _empty(tokens, 2 * model.intermediate, dtype=dtype).chunk(2, dim=-1)
        for gate, up in ((whole, whole), halves):
            op.swiglu_forward(gate, up)
            op._swiglu_backward(whole, gate, up)
            op.swiglu_backward_(whole, gate, up)


def _geglu(model: ModelShape, dtype: torch.dtype, batches: tuple[int, ...]) -> None:
    """Both GELUs; the halves of one projection, as in phi3 and glm, which SwiGLU has, too."""
    op = _op_module("geglu")
    for tokens, tanh in itertools.product((1, TOKENS), (False, True)):
        whole = _empty(tokens, model.intermediate, dtype=dtype)
        halves = _empty(tokens, 2 * model.intermediate, dtype=dtype).chunk(2, dim=-1)
        for gate, up in ((whole, whole), halves):
            op.geglu_forward(gate, up, tanh)
            op._geglu_backward(whole, gate, up, tanh)
            op.geglu_backward_(whole, gate, up, tanh)


def _capture_rows(model: ModelShape, dtype: torch.dtype, batches: tuple[int, ...]) -> None:
    op = _op_module("capture_rows")
    x = _empty(TOKENS, model.hidden, dtype=dtype)
    for count in batches:
        rows = _empty(count, dtype=torch.int64)
        op._forward(x, rows)
        op._backward(_empty(count, model.hidden, dtype=dtype), rows, None, TOKENS)


def _add_rows(model: ModelShape, dtype: torch.dtype, batches: tuple[int, ...]) -> None:
    op = _op_module("add_rows")
    x = _empty(TOKENS, model.hidden, dtype=dtype)
    for count in batches:
        op._write_rows(x, _empty(count, dtype=torch.int64), _empty(count, model.hidden, dtype=dtype))


def _capture_add_rows(model: ModelShape, dtype: torch.dtype, batches: tuple[int, ...]) -> None:
    """An update in the dtype of x, and one in fp32."""
    op, x = _op_module("capture_add_rows"), _empty(TOKENS, model.hidden, dtype=dtype)
    for count, update_dtype in itertools.product(batches, (dtype, torch.float32)):
        bank, rows = _empty(count, model.hidden, dtype=dtype), _empty(count, dtype=torch.int64)
        op._forward(x, bank, rows, rows, _empty(count, model.hidden, dtype=update_dtype))


def _decision(model: ModelShape, dtype: torch.dtype, batches: tuple[int, ...]) -> None:
    """`decide` and `connect`: training with noise, inference with a folded matrix, with `rows`, and the backward."""
    forward, backward = _op_module("decision.forward").forward, _op_module("decision.backward").backward
    layers, width = model.layers, model.hidden
    weight = _empty(layers, width, dtype=dtype)
    folded = _empty(width, layers, dtype=torch.float32), _empty(layers, width, layers, dtype=torch.float32)
    for count in batches:
        bank, embeds = _empty(layers, count, width, dtype=dtype), _empty(count, width, dtype=dtype)
        noise = weights = _empty(count, layers, dtype=torch.float32)
        vector = _empty(count, width, dtype=torch.float32)
        for hard, with_update in ((True, True), (False, True), (True, False)):
            forward(bank, embeds, weight, noise, 1.0, hard, None, with_update)
        for bank_weight in folded:
            forward(bank, embeds, weight, None, 1.0, True, bank_weight, True)
        for want_bank, want_embeds in ((True, True), (False, True), (False, False)):
            backward(embeds, None, bank, weight, weights, weights, vector, 1.0, want_bank, want_embeds)
        for grad_update in (None, embeds):
            backward(grad_update, weights, bank, weight, weights, weights, None, 1.0, True, True)
        rows = _empty(count, dtype=torch.int64)
        for hard in (True, False):
            forward(bank, embeds, weight, noise, 1.0, hard, None, True, rows)
        for bank_weight in folded:
            forward(bank, embeds, weight, None, 1.0, True, bank_weight, True, rows)
        for want_bank in (True, False):
            backward(embeds, None, bank, weight, weights, weights, vector, 1.0, want_bank, True, rows)


def _transform_rows(model: ModelShape, dtype: torch.dtype, batches: tuple[int, ...]) -> None:
    """One matrix, also transposed, and one for each layer."""
    forward, width = _op_module("transform_rows")._forward, model.hidden
    matrix = _empty(width, width, dtype=dtype)
    for count in batches:
        values = _empty(count, width, dtype=dtype)
        forward(values, matrix, None)
        forward(values, matrix.T, None)
        forward(values, matrix.expand(model.layers, width, width), _empty(count, dtype=torch.int64))


def _gate_up_swiglu(model: ModelShape, dtype: torch.dtype, batches: tuple[int, ...]) -> None:
    weight = _empty(model.intermediate, model.hidden, dtype=dtype)
    for count in batches:
        _op_module("gate_up_swiglu")._forward(_empty(count, model.hidden, dtype=dtype), weight, weight)


OPS: dict[str, Callable[[ModelShape, torch.dtype, tuple[int, ...]], None]] = {
    "swiglu": _swiglu,
    "geglu": _geglu,
    "capture_rows": _capture_rows,
    "add_rows": _add_rows,
    "capture_add_rows": _capture_add_rows,
    "connect": _decision,
    "transform_rows": _transform_rows,
    "gate_up_swiglu": _gate_up_swiglu,
}


def variants(
    ops: tuple[str, ...] = tuple(OPS),
    models: tuple[ModelShape, ...] = (*MODELS, LARGEST),
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    gpu: Gpu = H100,
    batches: tuple[int, ...] = ROWS,
) -> Iterator[tuple[str, torch.dtype, Launch]]:
    """Op, dtype and launch of every different kernel specialization, each once."""
    seen = set()
    for op in ops:
        for dtype in dtypes:
            for model in models:
                with recorded(gpu) as recording:
                    OPS[op](model, dtype, batches)
                for launch in recording.launches:
                    key = (launch.kernel.fn.__name__, repr(specialize(launch)))
                    if key not in seen:
                        seen.add(key)
                        yield op, dtype, launch


def compile_all(
    target: str,
    dtype: str,
    ops: tuple[str, ...] = tuple(OPS),
    models: tuple[ModelShape, ...] = (*MODELS, LARGEST),
    batches: tuple[int, ...] = ROWS,
) -> tuple[list[Report], list[str]]:
    """The reports of one target and dtype, and the failures as text."""
    reports, failures = [], []
    torch_dtype = getattr(torch, dtype)
    for _, _, launch in variants(ops, models, (torch_dtype,), TARGETS[target].gpu, batches):
        try:
            reports.append(inspect(launch, torch_dtype, TARGETS[target]))
        except Exception as error:  # whatever the compiler raises is a line of the report
            failures.append(f"{launch.kernel.fn.__name__} {dtype} {target}: {type(error).__name__}: {error}")
    return reports, failures
