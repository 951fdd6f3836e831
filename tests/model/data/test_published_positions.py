"""Where the collator connects: the published positions, and truncation that keeps the connection index."""

import json
import logging
from pathlib import Path

import pytest
import torch
from word_tokenizers import MARKED, ROW, SHORT, make_tokenizer

from cc_model.data.collator import ParallelCollator
from cc_model.data.positions import before_first_label
from cc_model.data.published_positions import published_position
from train.common.chat_templates import CHAT_TEMPLATES

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "positions.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['template']}: {case['note']}")
def test_published_positions(case):
    assert published_position(case["input_ids"], case["template"]) == case["raw_index"]
    assert len(case["input_ids"]) == case["T"]
    marker = GOLDEN["marker_ids"][case["template"]]
    renamed = [-5 if token == marker else token for token in case["input_ids"]]
    assert published_position(renamed, case["template"], marker_id=-5) == case["raw_index"]


def test_published_position_refuses_unknown_templates():
    with pytest.raises(ValueError, match=r"template: expected one of llama3, qwen2, mistral, got 'qwen'"):
        published_position([1], "qwen")


@pytest.mark.parametrize("family", ["llama3", "qwen2", "mistral"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_published_position_in_a_batch(family, side):
    tokenizer = make_tokenizer(family)
    tokenizer.padding_side = side
    batch = ParallelCollator(tokenizer, position="published")([ROW, {**SHORT, "instruction_en": "two"}])
    marker = tokenizer.convert_tokens_to_ids({"llama3": MARKED["llama3"][2], "qwen2": MARKED["qwen2"][1]}.get(
        family, "[/INST]"
    ))  # fmt: skip
    from_end = 0 if family == "llama3" else 1
    expected = before_first_label(batch["labels"]) - from_end
    assert torch.equal(batch["connection_index"], expected)
    for ids, mask, index in (
        ("input_ids", "attention_mask", "connection_index"),
        ("pivot_input_ids", "pivot_attention_mask", "pivot_index"),
    ):
        for row in range(2):
            start = int(batch[mask][row].argmax())
            unpadded = batch[ids][row][batch[mask][row] != 0].tolist()
            assert published_position(unpadded, family, marker) + start == int(batch[index][row])


def test_published_without_marker_names_the_row():
    with pytest.raises(ValueError, match=r"position: 'published' expects a tokenizer with one of the markers"):
        ParallelCollator(make_tokenizer("plain"), position="published")
    tokenizer = make_tokenizer("qwen2")
    tokenizer.chat_template = CHAT_TEMPLATES["qwen2"].replace("messages[0]['role'] != 'system'", "false")
    with pytest.raises(ValueError, match=r"row 0: connection_index: .*<\|im_start\|>.*got position -1 with 2"):
        ParallelCollator(tokenizer, position="published")([ROW])
    tokenizer = make_tokenizer("llama3")
    tokenizer.chat_template = "<|end_header_id|>{{ messages[0]['content'] }}<|end_header_id|>"
    with pytest.raises(
        ValueError, match=r"row 0: connection_index: .*within the 5 prompt tokens, got position 5 with 2"
    ):
        ParallelCollator(tokenizer, position="published").prompts([ROW])


def test_published_in_another_turn_is_reported(caplog):
    tokenizer = make_tokenizer("llama3")
    collator = ParallelCollator(tokenizer, position="published", system="You are")
    with caplog.at_level(logging.WARNING, "cc_model"):
        batch = collator([ROW, ROW])
    assert "the published rule does not give the end of the prompt" in caplog.text
    assert len(caplog.records) == 1
    # The published code connects in the user's header here; position="last" does not.
    assert (batch["connection_index"] < before_first_label(batch["labels"])).all()


def test_truncation(caplog):
    tokenizer = make_tokenizer("plain")
    whole = ParallelCollator(tokenizer)
    row = {**ROW, "output": "eins zwei drei eins zwei drei"}
    full = whole([row])
    prompt_length = int(full["connection_index"][0]) + 1
    assert whole.truncated == 0
    for max_length in range(2, full["input_ids"].shape[1] + 1):
        collator = ParallelCollator(tokenizer, max_length=max_length)
        with caplog.at_level(logging.WARNING, "cc_model"):
            batch = collator([row, row])
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0]
        kept = int((labels != -100).sum())
        assert len(ids) == max_length
        assert kept == max(1, max_length - prompt_length)
        expected_prompt = full["input_ids"][0, :prompt_length].tolist()[-(max_length - kept) :]
        assert ids[: max_length - kept] == expected_prompt
        assert ids[max_length - kept :] == full["input_ids"][0, prompt_length : prompt_length + kept].tolist()
        assert int(batch["connection_index"][0]) == max_length - kept - 1
        pivot = full["pivot_input_ids"][0].tolist()[-max_length:]
        assert batch["pivot_input_ids"][0].tolist() == pivot
        assert int(batch["pivot_index"][0]) == len(pivot) - 1
        truncated = max_length < max(full["input_ids"].shape[1], full["pivot_input_ids"].shape[1])
        assert collator.truncated == (2 if truncated else 0)
        assert caplog.text.count("was truncated") == (1 if truncated else 0)
        assert collator.lengths(row) == max_length + len(pivot)
        caplog.clear()


def test_truncation_never_drops_a_published_index():
    collator = ParallelCollator(make_tokenizer("qwen2"), position="published", max_length=4)
    batch = collator([ROW])
    assert batch["connection_index"].tolist() == [1]  # assistant, \n, answer, ... → [..., assistant, \n | answer]
    with pytest.raises(ValueError, match=r"row 0: connection_index: .* got position -1"):
        ParallelCollator(make_tokenizer("qwen2"), position="published", max_length=2)([ROW])
