"""Head and loss on the labelled tokens alone: wrong arguments."""

from __future__ import annotations

import pytest
import torch
from model_pairs import batch, pair
from shared_pivots import with_rows

ERRORS = {
    "type": ({"loss_rows": [1, 2]}, TypeError, "loss_rows: expected a tensor, got list"),
    "dtype": ({"loss_rows": torch.ones(4)}, TypeError, "loss_rows: expected int64 or int32, got torch.float32"),
    "bool": ({"loss_rows": torch.ones(4, dtype=torch.bool)}, TypeError, "loss_rows: expected int64 or int32, got"),
    "shape": (
        {"loss_rows": torch.ones(3, 12, dtype=torch.long)},
        ValueError,
        r"loss_rows: expected shape \(K,\), got \(3, 12\)",
    ),
    "shifted": (
        {"shift_labels": torch.ones(3, 12, dtype=torch.long)},
        ValueError,
        "shift_labels: expected none together with loss_rows",
    ),
    "kept": ({"logits_to_keep": 4}, ValueError, "logits_to_keep: expected none together with loss_rows"),
    "kept rows": (
        {"logits_to_keep": torch.tensor([1, 2])},
        ValueError,
        "logits_to_keep: expected none together with loss_rows",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    changes, error, message = ERRORS[case]
    _, model = pair()
    with pytest.raises(error, match=message):
        model.train()(**{**with_rows(batch()), **changes})
