"""Bad batches and options of `fit_transform_matrix`: each is an error that names the argument, and sets no matrix."""

from __future__ import annotations

import pytest
import torch
from model_pairs import pair

from cc_model import fit_transform_matrix
from cc_model.testing import tiny_model


def bad(**changes):
    """A batch of three pairs, T = 5 and S = 4, with changes; None takes a column away."""
    ids = torch.arange(15).view(3, 5)
    given = {"input_ids": ids, "attention_mask": None, "pivot_input_ids": ids[:, :4], "pivot_attention_mask": None}
    return {name: value for name, value in {**given, **changes}.items() if value is not None}


def whole(*shape):
    return torch.zeros(shape, dtype=torch.long)


BATCHES = {
    "no pair": (bad(attention_mask=whole(3, 5)), ValueError, "batches: expected at least one usable pair"),
    "missing": (bad(pivot_input_ids=None), ValueError, r"batches: expected a tensor 'pivot_input_ids' in each batch"),
    "no dict": (whole(2, 2), TypeError, "batches: expected dicts, got Tensor"),
    "ids list": (bad(input_ids=[[1, 2]]), TypeError, "^input_ids: expected a tensor, got list"),
    "ids dtype": (bad(input_ids=torch.ones(3, 5)), TypeError, "^input_ids: expected int64 or int32, got torch.float32"),
    "ids axes": (bad(input_ids=whole(3)), ValueError, r"^input_ids: expected shape \(B, T\), got \(3,\)"),
    "no tokens": (bad(input_ids=whole(3, 0)), ValueError, "^input_ids: expected at least one token per row"),
    "mask short": (bad(attention_mask=whole(3, 4)), ValueError, r"^attention_mask: expected .* \(3, 5\), got \(3, 4\)"),
    "mask long": (bad(attention_mask=whole(3, 6)), ValueError, r"^attention_mask: expected .* \(3, 5\), got \(3, 6\)"),
    "mask row": (bad(attention_mask=whole(1, 5)), ValueError, r"^attention_mask: expected .* \(3, 5\), got \(1, 5\)"),
    "mask list": (bad(attention_mask=[[1]]), TypeError, "^attention_mask: expected a tensor, got list"),
    "index one": (bad(connection_index=whole(1)), ValueError, r"^connection_index: .* \(3,\), got \(1,\)"),
    "index list": (bad(connection_index=[1, 2, 3]), TypeError, "^connection_index: expected a tensor, got list"),
    "index dtype": (bad(connection_index=torch.ones(3)), TypeError, "^connection_index: expected int64 or int32"),
    "pivot rows": (bad(pivot_input_ids=whole(2, 4)), ValueError, r"^pivot_input_ids: .* \(3, 4\), got \(2, 4\)"),
    "pivot dtype": (bad(pivot_input_ids=torch.ones(3, 4)), TypeError, "^pivot_input_ids: expected int64 or int32"),
    "pivot axes": (bad(pivot_input_ids=whole(3)), ValueError, r"^pivot_input_ids: expected shape \(B, S\), got \(3,\)"),
    "no pivots": (
        bad(pivot_input_ids=whole(3, 0)),
        ValueError,
        "^pivot_input_ids: expected at least one token",
    ),
    "pivot mask": (bad(pivot_attention_mask=whole(3, 5)), ValueError, r"^pivot_attention_mask: .* got \(3, 5\)"),
    "pivot index": (bad(pivot_index=whole(2)), ValueError, r"^pivot_index: .* \(3,\), got \(2,\)"),
    "pivot row": (bad(pivot_row=whole(2)), ValueError, r"^pivot_row: .* \(3,\), got \(2,\)"),
    "pivot row dtype": (bad(pivot_row=torch.ones(3)), TypeError, "^pivot_row: expected int64 or int32"),
}


@pytest.mark.parametrize("case", BATCHES)
def test_bad_batches(case):
    batch, error, message = BATCHES[case]
    refused({"batches": [batch]}, error, message)


OPTIONS = {
    "no batch": ({"batches": []}, ValueError, "batches: expected at least one usable pair"),
    "no batches": ({"batches": 3}, TypeError, "batches: expected an iterable of dicts, got int"),
    "ridge type": ({"ridge": "a"}, TypeError, "ridge: expected a number, got 'a'"),
    "ridge inf": ({"ridge": float("inf")}, ValueError, "ridge: expected a finite number, 0 or more, got inf"),
    "holdout type": ({"holdout": True}, TypeError, "holdout: expected a number, got True"),
    "report type": ({"report_rows": 1.5}, TypeError, "report_rows: expected an int, got 1.5"),
    "seed": ({"seed": "a"}, TypeError, "seed: expected an int, got 'a'"),
    "per_layer": ({"per_layer": "no"}, TypeError, "per_layer: expected True or False, got 'no'"),
    "affine": ({"affine": "no"}, TypeError, "affine: expected True or False, got 'no'"),
    "progress": ({"progress": 0}, TypeError, "progress: expected True or False, got 0"),
    "ridge": ({"ridge": -1.0}, ValueError, "ridge: expected a finite number, 0 or more, got -1.0"),
    "holdout": ({"holdout": 1.0}, ValueError, r"holdout: expected a share in \[0, 1\), got 1.0"),
    "report": ({"report_rows": 0}, ValueError, "report_rows: expected 1 or more"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_bad_options(case):
    options, error, message = OPTIONS[case]
    refused({"batches": [bad()], **options}, error, message)


def refused(options, error, message):
    _, model = pair(matrix=True)
    before = model.cc.transform_matrix.clone()
    with pytest.raises(error, match=message):
        fit_transform_matrix(model, **{"progress": False, **options})
    assert torch.equal(model.cc.transform_matrix, before)
    assert not model.training


def test_unpatched_model():
    with pytest.raises(ValueError, match="call patch_model"):
        fit_transform_matrix(tiny_model(), [])


def test_a_right_batch_is_taken():
    _, model = pair()
    report = fit_transform_matrix(
        model, [bad(), bad(pivot_row=whole(3).int(), pivot_input_ids=whole(1, 4))], progress=False
    )
    assert report.pairs == 6
