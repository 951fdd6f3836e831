"""`decide`: the decision alone, as in training, and with the folded `M Wᵀ` of inference."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.ops.cases import Case, backward_only, compiled, forward_and_backward
from benchmarks.ops.connect import ROWS, decision_inputs
from cc_kernels import decide, reference
from cc_kernels.aot.floors import Cost
from cc_kernels.aot.shapes import ModelShape

WIDE = 4  # bytes of an fp32 number


def _cost(layers: int, rows: int, width: int, size: int, folded: bool) -> Cost:
    """Bank, embeddings, W and noise are read once, `M Wᵀ` where there is one, and the weights are written."""
    read = (layers * rows * width + rows * width + layers * width) * size + rows * layers * WIDE
    return Cost(read + folded * width * layers * WIDE + rows * layers * WIDE, 3 * layers * rows * width)


def _folded_decide(bank: Tensor, embeds: Tensor, weight: Tensor, folded: Tensor) -> Tensor:
    return decide(bank, embeds, weight, bank_weight=folded)


def _folded_reference(bank: Tensor, embeds: Tensor, weight: Tensor, folded: Tensor) -> Tensor:
    return reference.decide(bank, embeds, weight, bank_weight=folded)


def model_cases(model: ModelShape, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """One registered model with sixteen rows."""
    layers, width, size = model.layers, model.hidden, dtype.itemsize
    inputs = partial(decision_inputs, layers=layers, rows=ROWS, width=width, device=device, dtype=dtype)
    name = f"decide L={layers} K={ROWS} d={width}"
    implementations = {"cc_kernels": decide, "eager": reference.decide, "torch.compile": compiled(reference.decide)}
    cost = _cost(layers, ROWS, width, size, folded=False)
    yield Case(f"{name} forward", inputs, reference.decide, implementations, cost)
    alone = {label: backward_only(op) for label, op in implementations.items()}
    backward = Cost(cost.bytes + (ROWS + layers) * width * size, 2 * cost.flops)
    yield Case(f"{name} backward", inputs, backward_only(reference.decide), {}, backward, alone)
    both = {label: forward_and_backward(op) for label, op in implementations.items()}
    total = Cost(cost.bytes + backward.bytes, cost.flops + backward.flops)
    yield Case(f"{name} forward+backward", inputs, forward_and_backward(reference.decide), both, total)

    def folded_inputs(seed: int) -> tuple[Tensor, ...]:
        bank, embeds, weight, _ = (x.detach() for x in inputs(seed))
        generator = torch.Generator(device).manual_seed(seed)
        folded = torch.randn(width, layers, generator=generator, device=device)
        folded[:, seed % layers] += bank.float().mean((0, 1)) * 20  # one layer far ahead
        return bank, embeds, weight, folded

    folded = {"cc_kernels": _folded_decide, "eager": _folded_reference, "torch.compile": compiled(_folded_reference)}
    yield Case(
        f"{name} folded", folded_inputs, _folded_reference, folded, _cost(layers, ROWS, width, size, folded=True)
    )
