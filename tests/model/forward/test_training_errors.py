"""Bad arguments of the training forward: each is an error that names the argument."""

from __future__ import annotations

import pytest
import torch
from model_pairs import batch, pair


def bad(**changes):
    data = batch()
    data.update(changes)
    return data


ERRORS = {
    "rows": (bad(pivot_input_ids=torch.zeros(2, 9, dtype=torch.long)), ValueError, r"pivot_input_ids: expected.*got"),
    "rank": (
        bad(pivot_input_ids=torch.zeros(3, dtype=torch.long)),
        ValueError,
        r"pivot_input_ids: expected shape \(B, S\), got \(3,\)",
    ),
    "empty": (
        bad(pivot_input_ids=torch.zeros(3, 0, dtype=torch.long), pivot_attention_mask=None),
        ValueError,
        "at least",
    ),
    "mask": (bad(pivot_attention_mask=torch.ones(3, 8)), ValueError, r"pivot_attention_mask: expected shape"),
    "dtype": (bad(pivot_input_ids=torch.zeros(3, 9)), TypeError, "pivot_input_ids: expected int64"),
    "index shape": (bad(connection_index=torch.zeros(3, 1, dtype=torch.long)), ValueError, "connection_index"),
    "index dtype": (bad(pivot_index=torch.zeros(3)), TypeError, "pivot_index: expected int64"),
    "index type": (bad(pivot_index=[1, 2, 3]), TypeError, "pivot_index: expected a tensor, got list"),
    "noise": (bad(gumbel_noise=torch.zeros(3, 5)), ValueError, r"gumbel_noise: expected shape \(B, L\) = \(3, 4\)"),
    "noise dtype": (bad(gumbel_noise=torch.zeros(3, 4, dtype=torch.long)), TypeError, "gumbel_noise"),
    "no pivot": (bad(pivot_input_ids=None), ValueError, "pivot_attention_mask: expected together with pivot_input_ids"),
    "packed": (bad(position_ids=torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]] * 3)), RuntimeError, "packed rows"),
    "varlen": (bad(cu_seq_lens_q=torch.tensor([0, 12])), NotImplementedError, "cu_seq_lens_q: packed rows"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_arguments(case):
    data, error, message = ERRORS[case]
    _, model = pair()
    with pytest.raises(error, match=message):
        model.train()(**data)


def test_too_many_positional_arguments():
    _, model = pair()
    with pytest.raises(TypeError, match="positional arguments"):
        model(*[None] * 20)


@pytest.mark.parametrize("name", ["connection_index", "gumbel_noise", "pivot_index"])
def test_orphan_argument_in_training(name):
    _, model = pair()
    data = {
        "input_ids": batch()["input_ids"],
        name: torch.zeros(3, 4) if name == "gumbel_noise" else torch.tensor([0] * 3),
    }
    with pytest.raises(ValueError, match=f"{name}: expected together with pivot_input_ids"):
        model.train()(**data)
