"""Autocast changes neither dtypes nor values: what is computed in fp32 stays so."""

import pytest
import torch
from decision_inputs import folded, inputs
from kernel_harness import BACKEND, DEVICE, randn

from cc_kernels import connect, decide, gate_up_swiglu, transform_rows, use_backend


def with_folded(bank, embeds, weight, noise, bank_weight):
    return connect(bank, embeds, weight, noise, bank_weight=bank_weight)[0]


CALLS = {
    "decide": (decide, inputs(6, 5, 70)),
    "decide, soft": (lambda *x: decide(*x, hard=False), inputs(6, 5, 70)),
    "connect": (lambda *x: connect(*x)[0], inputs(6, 5, 70)),
    "connect, soft": (lambda *x: connect(*x, hard=False)[0], inputs(6, 5, 70)),
    "connect, one matrix": (with_folded, [*inputs(6, 5, 70), folded(6, 70, False)]),
    "connect, matrix per layer": (with_folded, [*inputs(6, 5, 70), folded(6, 70, True)]),
    "transform_rows": (transform_rows, [randn(5, 70), randn(70, 70, seed=1)]),
    "gate_up_swiglu": (gate_up_swiglu, [randn(5, 70), randn(30, 70, seed=1), randn(30, 70, seed=2)]),
}


@pytest.mark.parametrize("case", CALLS)
def test_autocast_changes_nothing(case):
    op, given = CALLS[case]
    learns = case.startswith(("decide", "connect"))
    found = []
    for on in (False, True):
        arguments = [x.detach().clone().requires_grad_(learns) for x in given]
        with use_backend(BACKEND), torch.autocast(DEVICE.type, torch.bfloat16, enabled=on):
            output = op(*arguments)
        if learns:
            output.backward(randn(*output.shape, seed=9))
        found.append([output, *(x.grad for x in arguments if x.grad is not None)])
    assert len(found[0]) > learns
    for plain, cast in zip(*found, strict=True):
        assert cast.dtype == torch.float32
        assert torch.equal(plain, cast)
