"""Packed rows equal the padded batch: same loss, same gradients, same decisions."""

from __future__ import annotations

import pytest
import torch
from model_pairs import assert_same_gradients, batch, gradients, gumbel, pair
from packed_rows import packed
from word_tokenizers import ROW, SHORT, make_tokenizer

from cc_model import CCConfig, ParallelCollator


def step(model, data, noise):
    model.zero_grad()
    output = model(**data, gumbel_noise=noise)
    output.loss.backward()
    return output, gradients(model)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pivot_grad", [False, True])
def test_equals_the_padded_batch(architecture, attention, pivot_grad):
    _, model = pair(architecture, CCConfig(pivot_grad=pivot_grad), attn_implementation=attention)
    data, noise = batch(), gumbel(3)
    expected, gradients_expected = step(model.train(), data, noise)
    output, actual = step(model, packed(data), noise)
    assert output.logits.shape == (1, 33, 256)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-6)
    torch.testing.assert_close(output.logits[0], expected.logits[data["attention_mask"].bool()], rtol=0, atol=1e-5)
    assert torch.equal(output.decision_weights, expected.decision_weights)
    assert_same_gradients(actual, gradients_expected)


def test_sliding_window():
    _, model = pair("mistral", sliding_window=5)
    data, noise = batch(), gumbel(3)
    expected, gradients_expected = step(model.train(), data, noise)
    output, actual = step(model, packed(data), noise)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-6)
    assert_same_gradients(actual, gradients_expected)


def test_several_packed_rows():
    """Indices count through the flattened tokens of all rows."""
    _, model = pair()
    data, noise = batch(), gumbel(6)
    doubled = {name: value.repeat(2, 1) for name, value in data.items()}
    expected, gradients_expected = step(model.train(), doubled, noise)
    output, actual = step(model, packed(data, rows=2), noise)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-6)
    assert_same_gradients(actual, gradients_expected)


@pytest.mark.parametrize("case", ["no pivot", "index -1", "index past the end"])
def test_skipped_example(case):
    _, model = pair()
    data, noise = batch(), gumbel(3)
    plain = {**data, "connection_index": torch.tensor([6, -1, 4])}
    expected, gradients_expected = step(model.train(), plain, noise)
    made = packed(data)
    if case == "no pivot":
        made["pivot_attention_mask"][1] = 0
    else:
        made["connection_index"][1] = -1 if case == "index -1" else 33
    output, actual = step(model, made, noise)
    assert not output.decision_weights[1].any()
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-6)
    assert_same_gradients(actual, gradients_expected)


def test_gradient_checkpointing():
    _, model = pair("llama", CCConfig(pivot_grad=True))
    data, noise = packed(batch()), gumbel(3)
    expected, gradients_expected = step(model.train(), data, noise)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    output, actual = step(model, data, noise)
    assert torch.equal(output.loss, expected.loss)
    assert_same_gradients(actual, gradients_expected)


def test_evaluation_with_english_prompts():
    _, model = pair(matrix=True)
    data = batch()
    with torch.no_grad():
        expected = model.eval()(**data)
        torch.testing.assert_close(model(**packed(data)).loss, expected.loss, rtol=0, atol=1e-6)


@pytest.mark.parametrize("multiple", [None, 16])
def test_collator(multiple):
    tokenizer = make_tokenizer("llama3")
    rows = [ROW, SHORT, {**ROW, "instruction": "zwei"}]
    padded = ParallelCollator(tokenizer)(rows)
    made = ParallelCollator(tokenizer, packed=True, pad_to_multiple_of=multiple)(rows)
    tokens = int(padded["attention_mask"].sum())
    assert made["input_ids"].shape == (1, tokens if multiple is None else -(-tokens // 16) * 16)
    assert "attention_mask" not in made
    assert (made["position_ids"] == 0).sum() == 3
    _, model = pair(vocab_size=len(tokenizer))
    expected, gradients_expected = step(model.train(), padded, gumbel(3))
    output, actual = step(model, made, gumbel(3))
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-6)
    assert torch.equal(output.decision_weights, expected.decision_weights)
    assert expected.decision_weights.sum(1).tolist() == [1.0, 0.0, 1.0]
    assert_same_gradients(actual, gradients_expected)


def test_collator_with_one_example():
    """Rounding up must not look like a second example."""
    tokenizer = make_tokenizer("llama3")
    made = ParallelCollator(tokenizer, packed=True, pad_to_multiple_of=16)([ROW])
    _, model = pair(vocab_size=len(tokenizer))
    expected = model.train()(**ParallelCollator(tokenizer)([ROW]), gumbel_noise=gumbel(1))
    torch.testing.assert_close(model(**made, gumbel_noise=gumbel(1)).loss, expected.loss, rtol=0, atol=1e-6)


def changed(**changes):
    return {**packed(batch()), **changes}


ERRORS = {
    "no index": (changed(connection_index=None), ValueError, "packed rows need one pivot and one connection_index"),
    "index per row": (changed(connection_index=torch.tensor([6])), ValueError, "packed rows need one pivot and one"),
    "no positions": (changed(position_ids=None), ValueError, r"position_ids: expected positions \(B, T\) that restart"),
    "mask": (changed(attention_mask=torch.ones(1, 33)), ValueError, "attention_mask: expected None .* does not read"),
    "cache": (changed(use_cache=True), ValueError, "use_cache: expected False and no .* for packed rows"),
    "no restart": (changed(position_ids=torch.arange(33)[None]), RuntimeError, "one restart for each pivot"),
    "noise": (changed(gumbel_noise=torch.zeros(1, 4)), ValueError, r"gumbel_noise: expected shape \(B, L\) = \(3, 4\)"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    data, error, message = ERRORS[case]
    _, model = pair()
    with pytest.raises(error, match=message):
        model.train()(**data)


def test_matrix_does_not_connect_packed_prompts():
    _, model = pair(matrix=True)
    data = packed(batch())
    with (
        pytest.raises(RuntimeError, match=r"packed rows .* are connected by their English prompts only"),
        torch.no_grad(),
    ):
        model(data["input_ids"], position_ids=data["position_ids"])
