"""A bank as an argument: what the pivot pass captures, captured before, gives the same step."""

from __future__ import annotations

import copy

import pytest
import torch
from adapters import fill, lora, peft
from model_pairs import assert_same_gradients, batch, gradients, gumbel, pair
from oracle import capture
from packed_rows import packed
from shared_pivots import ROWS, shared_batch, unshared

from cc_model import CCConfig, pivot_bank
from cc_model.data.columns import PIVOT_COLUMNS, PivotBank


def step(model, data, noise=None, seed=0):
    torch.manual_seed(seed)
    model.train().zero_grad()
    output = model(**data, gumbel_noise=noise)
    output.loss.backward()
    return output, gradients(model)


def through_bank(model, data, bare=False, **changes):
    """The batch with its pivots' bank in their place; `bare`: the tensor alone, whose rows all count."""
    bank = pivot_bank(model, data)
    kept = {name: value for name, value in data.items() if name not in PIVOT_COLUMNS}
    return {**kept, "pivot_bank": bank.bank if bare else bank, **changes}


def test_is_what_the_oracle_captures(architecture):
    stock, model = pair(architecture)
    data = batch()
    bank, usable = pivot_bank(model, data)
    with torch.no_grad():
        expected = capture(stock, data["pivot_input_ids"], data["pivot_attention_mask"], [8, 7, 6])
    torch.testing.assert_close(bank, expected, rtol=0, atol=1e-5)
    assert usable.tolist() == [True] * 3
    assert not bank.requires_grad


def test_which_rows_are_usable():
    _, model = pair()
    data = batch()
    data["pivot_attention_mask"][0] = 0
    index = torch.tensor([4, 9, 8])
    assert pivot_bank(model, {**data, "pivot_index": index}).usable.tolist() == [False, False, True]
    assert pivot_bank(model, {"pivot_input_ids": data["pivot_input_ids"]}).usable.tolist() == [True] * 3


@pytest.mark.parametrize("training", [False, True])
def test_leaves_the_mode_alone(training):
    _, model = pair()
    model.train(training)
    pivot_bank(model, batch())
    assert model.training == model.model.training == training


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("options", [{}, {"hard": False}, {"inject_layer": 2}, {"connection_dropout": 0.5}])
def test_gives_the_same_step(shared, options):
    _, model = pair("llama", CCConfig(**options))
    data = shared_batch() if shared else unshared(shared_batch())
    expected, gradients_expected = step(model, data, gumbel(ROWS))
    output, actual = step(model, through_bank(model, data), gumbel(ROWS))
    assert torch.equal(output.loss, expected.loss)
    assert torch.equal(output.decision_weights, expected.decision_weights)
    assert_same_gradients(actual, gradients_expected)
    assert expected.decision_weights[3].sum() == 0, "the row without a pivot stays without one"


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_simulated_rows(share):
    _, model = pair("llama", CCConfig(simulated_share=share), matrix=True)
    data = shared_batch()
    for seed in range(3):
        expected, gradients_expected = step(model, data, gumbel(ROWS), seed)
        output, actual = step(model, through_bank(model, data), gumbel(ROWS), seed)
        assert torch.equal(output.loss, expected.loss)
        assert_same_gradients(actual, gradients_expected)


def test_a_bare_bank_counts_as_usable():
    """`pivot_row` says who reads nothing; without it row b reads row b of the bank."""
    _, model = pair()
    data = shared_batch()
    bare = through_bank(model, data, bare=True)
    expected, gradients_expected = step(model, data, gumbel(ROWS))
    output, actual = step(model, bare, gumbel(ROWS))
    assert torch.equal(output.loss, expected.loss)
    assert_same_gradients(actual, gradients_expected)
    alone = unshared(data)
    bare = through_bank(model, alone, bare=True)
    output, _ = step(model, bare, gumbel(ROWS))
    assert output.decision_weights.sum(1).tolist() == [1.0] * 5


def test_packed_rows():
    _, model = pair()
    data = packed(batch())
    expected, gradients_expected = step(model, data, gumbel(3))
    for bare in (False, True):
        output, actual = step(model, through_bank(model, data, bare), gumbel(3))
        assert torch.equal(output.loss, expected.loss)
        assert_same_gradients(actual, gradients_expected)


def test_evaluation():
    _, model = pair(matrix=True)
    data = shared_batch()
    with torch.no_grad():
        expected, output = model.eval()(**data), model(**through_bank(model, data))
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.decision_weights, expected.decision_weights)


def test_runs_no_pivot_pass():
    _, model = pair()
    data = through_bank(model, shared_batch())
    seen = []
    model.model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[:2]))
    step(model, data)
    assert seen == [(5, 12)]


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    _, model = pair()
    data = shared_batch()
    expected, gradients_expected = step(model, data, gumbel(ROWS))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    output, actual = step(model, through_bank(model.train(), data), gumbel(ROWS))
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-6)
    assert_same_gradients(actual, gradients_expected)


def test_compiled_model():
    torch._dynamo.reset()
    _, eager = pair(num_hidden_layers=2)
    _, model = pair(num_hidden_layers=2, use_cache=False)
    data, noise = shared_batch(), gumbel(ROWS, 2)
    _, gradients_expected = step(eager, data, noise)
    compiled = torch.compile(model.train(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(pivot_bank(compiled, data).bank, pivot_bank(eager, data).bank)
    compiled(**through_bank(compiled, data, bare=True), gumbel_noise=noise).loss.backward()
    assert_same_gradients(gradients(model), gradients_expected, tolerance=1e-5)
    torch._dynamo.reset()


def test_inside_an_adapter():
    _, model = pair()
    wrapped = fill(peft.get_peft_model(model, lora()))
    data = shared_batch()
    expected, gradients_expected = step(wrapped, data, gumbel(ROWS))
    output, actual = step(wrapped, through_bank(wrapped, data), gumbel(ROWS))
    assert torch.equal(output.loss, expected.loss)
    assert_same_gradients(actual, gradients_expected)


def test_inference_mode_and_other_keys():
    _, model = pair()
    data = {**batch(), "note": "ignored"}
    with torch.inference_mode():
        bank, _ = pivot_bank(model, data)
    torch.testing.assert_close(bank, pivot_bank(model, data).bank)


def given(**changes):
    _, model = pair()
    return {**through_bank(model, shared_batch(), bare=True), **changes}


BANK = torch.zeros(4, 3, 64)
ERRORS = {
    "both": (
        {"pivot_input_ids": torch.zeros(3, 2, dtype=torch.long)},
        ValueError,
        "pivot_bank: expected without pivot_input_ids",
    ),
    "orphan": (
        {"pivot_index": torch.zeros(3, dtype=torch.long)},
        ValueError,
        "pivot_bank: expected without pivot_index, whose place it takes",
    ),
    "type": ({"pivot_bank": [1.0]}, TypeError, "pivot_bank: expected a tensor or a PivotBank, got list"),
    "dtype": ({"pivot_bank": BANK.long()}, TypeError, "pivot_bank: expected a floating-point dtype, got torch.int64"),
    "layers": (
        {"pivot_bank": BANK[:3]},
        ValueError,
        r"pivot_bank: expected shape \(L, P, d\) with L = 4, got \(3, 3, 64\)",
    ),
    "rank": ({"pivot_bank": BANK[0]}, ValueError, r"pivot_bank: expected shape \(L, P, d\) with L = 4, got \(3, 64\)"),
    "width": ({"pivot_bank": BANK[:, :, :32]}, ValueError, r"pivot_bank: expected .* d = 64, got \(4, 3, 32\)"),
    "gradient": (
        {"pivot_bank": BANK.clone().requires_grad_()},
        ValueError,
        "pivot_bank: expected a bank without a gradient, got one that requires it; for pivot_grad=True give",
    ),
    "rows": ({"pivot_row": None}, ValueError, r"pivot_bank: expected shape \(L, B, d\) with B = 5, got \(4, 3, 64\)"),
    "usable": (
        {"pivot_bank": PivotBank(BANK, torch.ones(2, dtype=torch.bool))},
        ValueError,
        r"pivot_bank: expected usable of shape \(P,\) = \(3,\), got \(2,\)",
    ),
    "usable dtype": (
        {"pivot_bank": PivotBank(BANK, torch.ones(3))},
        TypeError,
        "pivot_bank: expected usable to be a bool tensor, got torch.float32",
    ),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", ERRORS)
def test_bad_banks(case, training):
    changes, error, message = ERRORS[case]
    _, model = pair()
    with pytest.raises(error, match=message):
        model.train(training)(**given(**changes))


def test_a_gradient_through_it_is_refused():
    """With `pivot_grad` the pass is part of the step; evaluation and steps without a gradient take a bank."""
    _, model = pair("llama", CCConfig(pivot_grad=True))
    data = through_bank(model, shared_batch())
    with pytest.raises(ValueError, match="pivot_bank: expected pivot_input_ids with pivot_grad=True"):
        model.train()(**data)
    with torch.no_grad():
        assert torch.isfinite(model(**data).loss)
        assert torch.isfinite(model.eval()(**data).loss)


def test_what_cannot_be_captured():
    stock, model = pair()
    with pytest.raises(ValueError, match=r"model: expected a patched model, got LlamaForCausalLM; call patch_model"):
        pivot_bank(stock, batch())
    with pytest.raises(ValueError, match=r"batch: expected pivot_input_ids, got \['input_ids'\]"):
        pivot_bank(model, {"input_ids": batch()["input_ids"]})
    for changes, error, message in (
        ({"pivot_input_ids": [[1]]}, TypeError, "pivot_input_ids: expected a tensor, got list"),
        ({"pivot_input_ids": torch.ones(3)}, ValueError, "pivot_input_ids: expected shape"),
        ({"pivot_index": torch.zeros(2, dtype=torch.long)}, ValueError, r"pivot_index: expected shape .* got \(2,\)"),
        ({"pivot_index": torch.zeros(3)}, TypeError, "pivot_index: expected int64 or int32"),
        ({"pivot_attention_mask": torch.ones(3, 8)}, ValueError, "pivot_attention_mask: expected shape"),
    ):
        with pytest.raises(error, match=message):
            pivot_bank(model, {**batch(), **changes})


def test_a_copy_of_the_model_reads_the_same_bank():
    _, model = pair()
    data = through_bank(model, shared_batch())
    expected, _ = step(model, data, gumbel(ROWS))
    assert torch.equal(step(copy.deepcopy(model), data, gumbel(ROWS))[0].loss, expected.loss)
