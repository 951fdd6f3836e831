"""What a training forward costs in ops and host synchronisations: counted, not timed, so that it cannot flake."""

from __future__ import annotations

import pytest
import torch
from model_pairs import pair

from benchmarks.measure.counting import OpCounter
from cc_model import CCConfig

LAYERS, ROWS, MAIN, PIVOT = 32, 16, 48, 40


def counted(function) -> OpCounter:
    with OpCounter() as counter:
        function()
    return counter


def inputs():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(256, (ROWS, MAIN), generator=generator)
    labels = ids.clone()
    labels[:, :20] = -100
    pivot = torch.randint(256, (ROWS, PIVOT), generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "pivot_input_ids": pivot,
        "pivot_attention_mask": torch.ones_like(pivot),
    }


@pytest.mark.parametrize("pivot_grad", [False, True])
def test_added_ops_and_synchronisations(pivot_grad):
    stock, model = pair("llama", CCConfig(pivot_grad=pivot_grad), num_hidden_layers=LAYERS)
    stock.train(), model.train()
    data = inputs()
    main = {name: value for name, value in data.items() if not name.startswith("pivot")}
    pivot = {"input_ids": data["pivot_input_ids"], "attention_mask": data["pivot_attention_mask"]}
    model(**data), stock(**main)  # first-call work is not counted
    plain = counted(lambda: (stock(**pivot), stock(**main)))
    connected = counted(lambda: model(**data))
    added = connected.ops.total() - plain.ops.total()
    print(f"non-view ops added: {added}, views added: {connected.views - plain.views}")
    assert added <= 2 * LAYERS + 20
    assert added <= 24, "one gather for each layer, less the pivot pass's cache and head, and a fixed rest"
    assert connected.synchronisations == plain.synchronisations
    assert plain.ops["aten.mm.default"] - connected.ops["aten.mm.default"] == 0, "head of the pivot pass ↔ decision"


def test_decode_step_adds_nothing():
    """Once connected, a decode step is the plain model's."""
    stock, model = pair(matrix=True)
    ids = inputs()["input_ids"][:2]
    options = {"do_sample": False, "eos_token_id": None}

    model.generate(ids, max_new_tokens=1, **options)  # folds the matrix, once

    def steps(generating, count):
        return counted(lambda: generating.generate(ids, max_new_tokens=count, **options)).ops

    ours = steps(model, 6) - steps(model, 3)
    plain = steps(stock, 6) - steps(stock, 3)
    assert ours == plain


def test_generation_synchronises_no_more_than_the_plain_model():
    stock, model = pair(matrix=True)
    ids = inputs()["input_ids"][:2]
    mask = torch.ones_like(ids)
    ours, plain = (
        counted(lambda m=m: m.generate(ids, attention_mask=mask, max_new_tokens=2, do_sample=False))
        for m in (model, stock)
    )
    # One is the check for right padding; transformers 5.17 reads the mask once in every forward, 5.23 does not.
    assert ours.synchronisations <= plain.synchronisations + 2
