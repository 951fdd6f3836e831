"""English prompts that rows share: wrong arguments of the forward and of generate."""

from __future__ import annotations

import pytest
import torch
from model_pairs import pair
from shared_pivots import shared_batch


def bad(**changes):
    return {**shared_batch(), **changes}


ERRORS = {
    "type": (bad(pivot_row=[0] * 5), TypeError, "pivot_row: expected a tensor, got list"),
    "dtype": (bad(pivot_row=torch.zeros(5)), TypeError, "pivot_row: expected int64 or int32, got torch.float32"),
    "rows": (
        bad(pivot_row=torch.zeros(4, dtype=torch.long)),
        ValueError,
        r"pivot_row: expected shape \(B,\) = \(5,\), got \(4,\)",
    ),
    "rank": (bad(pivot_row=torch.zeros(5, 1, dtype=torch.long)), ValueError, "pivot_row: expected shape"),
    "left out": (bad(pivot_row=None), ValueError, r"pivot_input_ids: expected shape \(B, S\) = \(5, 9\), got \(3, 9\)"),
    "mask": (
        bad(pivot_attention_mask=torch.ones(5, 9)),
        ValueError,
        r"pivot_attention_mask: expected shape .* = \(3, 9\), got \(5, 9\)",
    ),
    "index": (
        bad(pivot_index=torch.zeros(5, dtype=torch.long)),
        ValueError,
        r"pivot_index: expected shape \(.*\) = \(3,\), got \(5,\)",
    ),
    "no pivots": (
        bad(pivot_input_ids=None, pivot_attention_mask=None),
        ValueError,
        "pivot_row: expected together with pivot_input_ids",
    ),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", ERRORS)
def test_errors(case, training):
    data, error, message = ERRORS[case]
    _, model = pair()
    with pytest.raises(error, match=message):
        model.train(training)(**data)


def test_generate_errors():
    _, model = pair()
    data = shared_batch()
    with pytest.raises(ValueError, match="pivot_row: expected together with pivot_input_ids"):
        model.generate(data["input_ids"], pivot_row=data["pivot_row"])
    with pytest.raises(ValueError, match=r"pivot_row: expected shape \(B,\) = \(5,\), got \(4,\)"):
        model.generate(data["input_ids"], pivot_input_ids=data["pivot_input_ids"], pivot_row=data["pivot_row"][:4])
