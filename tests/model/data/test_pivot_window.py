"""PivotWindow: the pivots of several micro-batches in one bank, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from model_pairs import batch, pair
from shared_pivots import shared_batch

from cc_model import pivot_bank
from cc_model.data.pivot_window import PivotWindow


def odd(**changes):
    return {**shared_batch(), **changes}


HOLES = torch.tensor([[1, 0, 1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0, 1, 1, 0], [0] * 9])


BATCHES = {
    "as it is": odd(),
    "left": shared_batch(left=True),
    "no mask": odd(pivot_attention_mask=None),
    "no row": {name: value for name, value in batch().items() if name != "labels"},
    "indices": odd(pivot_index=torch.tensor([3, 8, 0])),
    "indices out of range": odd(pivot_index=torch.tensor([-1, 9, 2])),
    "holes": odd(pivot_attention_mask=HOLES),
    "a captured token that is not attended": odd(pivot_attention_mask=HOLES, pivot_index=torch.tensor([5, 0, 1])),
    "all rows empty": odd(pivot_attention_mask=torch.zeros(3, 9, dtype=torch.long)),
    "rows out of range": odd(pivot_row=torch.tensor([3, -2, 2, 0, 10**9], dtype=torch.int64)),
    "int32": odd(pivot_row=torch.tensor([2, -1, 2, 0, 1], dtype=torch.int32)),
}


@pytest.mark.parametrize("case", BATCHES)
@pytest.mark.parametrize("tokens", [1, 10**6])
def test_a_micro_batch_through_the_window(case, tokens):
    """Logits and decisions are those of its own pivots, whatever the padding, masks and indices."""
    _, model = pair()
    given, other = BATCHES[case], shared_batch(seed=9)
    window = PivotWindow([other, given, dict(given)])
    parts = window.parts(tokens) or [{"pivot_input_ids": torch.zeros(1, 1, dtype=torch.long)}]
    bank = torch.cat([pivot_bank(model, part).bank for part in parts], dim=1)
    with torch.no_grad():
        expected, found = model(**given), model(**window.through_bank(given, bank))
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=2e-5)
    assert torch.equal(found.decision_weights, expected.decision_weights)


def test_what_a_window_refuses():
    """The forward does not get to see the pivots, so their mistakes are found here."""
    for changes, error, message in (
        ({"pivot_row": torch.zeros(5)}, TypeError, "pivot_row: expected int64 or int32"),
        ({"pivot_attention_mask": torch.ones(5, 9)}, ValueError, "pivot_attention_mask: expected shape"),
        ({"pivot_input_ids": torch.ones(3, 9)}, TypeError, "pivot_input_ids: expected int64 or int32"),
        ({"batch_shape": torch.empty(5, 5, 4, 0, 0)}, ValueError, "pivot_input_ids: expected 4 rows .* something cut"),
    ):
        with pytest.raises(error, match=message):
            PivotWindow([odd(**changes)])
