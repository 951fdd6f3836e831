"""ParallelCollator: positions, masks, labels, padding, truncation, and what it refuses."""

import copy
import pickle

import pytest
import torch
from torch.utils.data import DataLoader
from word_tokenizers import MARKED, ROW, SHORT, make_tokenizer

from cc_model import patch_model
from cc_model.data.collator import ParallelCollator
from cc_model.data.positions import before_first_label, last_attended
from cc_model.testing import tiny_model
from train.common.chat_templates import CHAT_TEMPLATES
from train.data import build_rows, train_tokenizer


@pytest.fixture(scope="module")
def cldr():
    rows = build_rows(languages=["en", "de", "ja"], relations=["currency"])["train"]
    return train_tokenizer((row["instruction"] + row["output"] for row in rows), 1024), rows


@pytest.mark.parametrize("family", list(MARKED))
@pytest.mark.parametrize("side", ["left", "right"])
def test_batch(family, side):
    tokenizer = make_tokenizer(family)
    tokenizer.padding_side = side
    batch = ParallelCollator(tokenizer)([ROW, SHORT])
    assert set(batch) == {
        *("input_ids", "attention_mask", "labels", "connection_index"),
        *("pivot_input_ids", "pivot_attention_mask", "pivot_index"),
    }
    assert all(isinstance(value, torch.Tensor) and value.dtype == torch.int64 for value in batch.values())
    assert torch.equal(batch["connection_index"], before_first_label(batch["labels"]))
    assert batch["pivot_index"][0] == last_attended(batch["pivot_attention_mask"])[0]
    assert batch["pivot_index"][1] == -1
    assert batch["pivot_attention_mask"][1].sum() == 0
    for row, feature in enumerate([ROW, SHORT]):
        ids = batch["input_ids"][row][batch["attention_mask"][row] != 0].tolist()
        labels = batch["labels"][row][batch["labels"][row] != -100].tolist()
        assert labels == [*tokenizer.convert_tokens_to_ids(feature["output"].split()), tokenizer.eos_token_id]
        assert ids[-len(labels) :] == labels
        assert ids.count(tokenizer.bos_token_id) == (0 if family == "qwen2" else 1)
        padding = batch["input_ids"][row][batch["attention_mask"][row] == 0]
        assert (padding == tokenizer.pad_token_id).all()
    assert batch["attention_mask"][0].all()  # padded to the longest row, not further
    assert batch["pivot_attention_mask"][0].all()
    padded = batch["attention_mask"][1] == 0
    assert padded[0 if side == "left" else -1]


@pytest.mark.parametrize("family", list(MARKED))
def test_prompt_is_what_inference_sees(family):
    tokenizer = make_tokenizer(family)
    tokenizer.padding_side = "right"
    collator = ParallelCollator(tokenizer)
    train, prompts = collator([ROW, SHORT]), collator.prompts([ROW, SHORT])
    assert "labels" not in prompts
    assert prompts["attention_mask"][:, -1].all()  # left-padded
    for row in range(2):
        prompt = prompts["input_ids"][row][prompts["attention_mask"][row] != 0]
        end = int(train["connection_index"][row]) + 1
        assert torch.equal(train["input_ids"][row, :end], prompt)
    assert (prompts["connection_index"] == prompts["input_ids"].shape[1] - 1).all()
    without = collator.prompts([{"instruction": "eins"}], pivot=False)
    assert set(without) == {"input_ids", "attention_mask", "connection_index"}


PROMPTS = {
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\neins<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "qwen2": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\neins<|im_end|>\n"
    "<|im_start|>assistant\n",
    "mistral": "<s>[INST] eins[/INST]",
    "plain": "User: eins\nAssistant:",
}


@pytest.mark.parametrize("family", list(PROMPTS))
def test_prompt_text(family, cldr):
    tokenizer = copy.deepcopy(cldr[0])  # byte-level, so that decoding gives the text back
    tokenizer.add_special_tokens({"additional_special_tokens": MARKED[family]})
    tokenizer.chat_template = CHAT_TEMPLATES.get(family)
    if family != "plain":
        tokenizer.bos_token = MARKED[family][0]
    tokenizer.padding_side = "right"
    batch = ParallelCollator(tokenizer)([{"instruction": "eins", "output": "zwei"}])
    end = int(batch["connection_index"]) + 1
    assert tokenizer.decode(batch["input_ids"][0, :end]) == PROMPTS[family]
    answer = tokenizer.decode(batch["input_ids"][0, end:])
    assert answer == {"llama3": "zwei<|eot_id|>", "qwen2": "zwei<|im_end|>"}.get(family, " zwei" + tokenizer.eos_token)


def test_system_turn():
    tokenizer = make_tokenizer("plain")
    ids = ParallelCollator(tokenizer, system="You are").prompts([SHORT])["input_ids"][0]
    assert tokenizer.decode(ids) == "<s> You are \n User : drei \n Assistant :"


def test_without_any_pivot():
    batch = ParallelCollator(make_tokenizer("plain"))([SHORT, {"instruction": "eins", "output": "zwei"}])
    assert batch["pivot_input_ids"].shape == (2, 1)
    assert batch["pivot_attention_mask"].tolist() == [[0], [0]]
    assert batch["pivot_index"].tolist() == [-1, -1]


@pytest.mark.parametrize("none", [None, "", "  "])
def test_no_pivot_spellings(none):
    batch = ParallelCollator(make_tokenizer("plain"))([{**ROW, "instruction_en": none}, ROW])
    assert batch["pivot_index"][0] == -1
    assert batch["pivot_index"][1] >= 0


def test_messages_equal_columns():
    collator = ParallelCollator(make_tokenizer("llama3"))
    chat = {
        "messages": [
            {"role": "user", "content": ROW["instruction"]},
            {"role": "assistant", "content": ROW["output"]},
        ],
        "messages_en": [{"role": "user", "content": ROW["instruction_en"]}, {"role": "assistant", "content": "unread"}],
        "instruction": None,
    }
    for one, other in ((collator([chat]), collator([ROW])), (collator.prompts([chat]), collator.prompts([ROW]))):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_several_turns_train_the_last_answer():
    collator = ParallelCollator(make_tokenizer("llama3"))
    turns = [
        {"role": "user", "content": "eins"},
        {"role": "assistant", "content": "zwei"},
        {"role": "user", "content": "drei"},
        {"role": "assistant", "content": "eins zwei"},
    ]
    batch = collator([{"messages": turns}])
    labels = batch["labels"][0]
    assert collator.tokenizer.decode(labels[labels != -100]).split() == ["eins", "zwei", "<|eot_id|>"]


def test_a_token_across_the_boundary_is_encoded_apart(cldr):
    tokenizer, _ = cldr
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{{ '|ye' if add_generation_prompt else '|ye' ~ messages[-1]['content'] ~ eos_token }}"
    joint = tokenizer("|yen")["input_ids"]
    assert joint[: len(tokenizer("|ye")["input_ids"])] != tokenizer("|ye")["input_ids"]  # the case at hand
    collator = ParallelCollator(tokenizer)
    row = {"instruction": "", "output": "n"}
    batch = collator([row])
    prompt = collator.prompts([row])["input_ids"][0].tolist()
    assert batch["input_ids"][0].tolist() == prompt + tokenizer("n<|eos|>")["input_ids"]


def test_pad_to_multiple_of():
    batch = ParallelCollator(make_tokenizer("plain"), pad_to_multiple_of=8)([ROW, SHORT])
    assert batch["input_ids"].shape[1] % 8 == 0
    assert batch["pivot_input_ids"].shape[1] % 8 == 0
    assert torch.equal(batch["connection_index"], before_first_label(batch["labels"]))


@pytest.mark.parametrize(
    ("feature", "error", "message"),
    [
        ({"output": "eins"}, ValueError, r"row 1: column 'instruction' or messages is missing, got \['output'\]"),
        ({"instruction": "eins"}, ValueError, "row 1: column 'output' is missing"),
        ({"instruction": 3, "output": "eins"}, TypeError, "row 1: column 'instruction' must be text, got int"),
        ({"instruction": "eins", "output": None}, TypeError, "row 1: column 'output' must be text, got NoneType"),
        ({**ROW, "instruction_en": ["one"]}, TypeError, "row 1: column 'instruction_en' must be text, got list"),
        ({"messages": "eins"}, TypeError, "row 1: column 'messages' must be a list of messages, got str"),
        ({"messages": []}, ValueError, "row 1: column 'messages' must hold at least one message"),
        ({"messages": [{"role": "user"}]}, TypeError, "row 1: column 'messages': expected messages with text"),
        ({"messages": [{"role": "user", "content": "eins"}]}, ValueError, "row 1: .* must end with an assistant turn"),
        ({"messages": [{"role": "assistant", "content": "eins"}]}, ValueError, "row 1: .* a turn before the answer"),
        ("eins", TypeError, "row 1: expected a mapping of columns, got str"),
    ],
)
def test_bad_columns(feature, error, message):
    with pytest.raises(error, match=message):
        ParallelCollator(make_tokenizer("plain"))([ROW, feature])


def test_bad_arguments():
    tokenizer = make_tokenizer("plain")
    for options, message in (
        ({"position": "first"}, r"position: expected one of \('last', 'published'\), got 'first'"),
        ({"max_length": 1}, "max_length: expected an integer of at least 2"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of: expected a positive integer or None, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ParallelCollator(tokenizer, **options)
    for options, message in (
        ({"tokenizer": None}, "tokenizer: expected a tokenizer of transformers, got NoneType"),
        ({"tokenizer": "x"}, "tokenizer: expected a tokenizer of transformers, got str"),
        ({"system": 5}, "system: expected a text or None, got 5"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs: expected a dict or None, got 'x'"),
        *(({name: 1}, f"{name}: expected True or False, got 1") for name in ("packed", "share_pivots", "loss_only")),
    ):
        with pytest.raises(TypeError, match=message):
            ParallelCollator(**{"tokenizer": tokenizer, **options})
    with pytest.raises(ValueError, match="features: expected at least one row"):
        ParallelCollator(tokenizer)([])
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="tokenizer: expected a chat template or an eos_token"):
        ParallelCollator(tokenizer)


def test_template_that_refuses_names_the_row():
    with pytest.raises(ValueError, match=r"row 0: the tokenizer's chat template refused it: a system turn"):
        ParallelCollator(make_tokenizer("mistral"), system="You")([ROW])


def test_in_dataloader_workers(cldr):
    tokenizer, rows = cldr
    collator = ParallelCollator(tokenizer)
    restored = pickle.loads(pickle.dumps(collator))
    assert torch.equal(restored(rows[:3])["input_ids"], collator(rows[:3])["input_ids"])
    loaded = list(DataLoader(rows[:8], batch_size=4, collate_fn=collator, num_workers=1))
    for batch, start in zip(loaded, (0, 4), strict=True):
        expected = collator(rows[start : start + 4])
        assert all(torch.equal(batch[key], expected[key]) for key in expected)


def test_left_and_right_padding_train_alike(cldr):
    tokenizer, rows = cldr
    model = patch_model(tiny_model("llama", vocab_size=1024)).eval()
    noise = torch.randn(4, 4)
    losses = []
    mixed = [rows[0], *rows[-3:]]  # one English row, without a pivot
    for side in ("left", "right"):
        tokenizer.padding_side = side
        output = model(**ParallelCollator(tokenizer)(mixed), gumbel_noise=noise)
        assert output.decision_weights.sum(1).tolist() == [0.0, 1.0, 1.0, 1.0]
        losses.append(output.loss.item())
    tokenizer.padding_side = "right"
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_generate_takes_prompts(cldr):
    tokenizer, rows = cldr
    model = patch_model(tiny_model("llama", vocab_size=1024)).eval()
    model.cc.transform_matrix = torch.eye(64)
    collator = ParallelCollator(tokenizer)
    for batch in (collator.prompts(rows[-3:]), collator.prompts(rows[-3:], pivot=False)):
        generated = model.generate(**batch, max_new_tokens=2, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        assert generated.shape == (3, batch["input_ids"].shape[1] + 2)
