"""The small tokenizer: exact round trips in every script, and a chat template whose prompt is a prefix."""

import jinja2
import pytest

from train.data import build_rows, train_tokenizer


@pytest.fixture(scope="module")
def rows():
    return build_rows(held_out=0)["train"]


@pytest.fixture(scope="module")
def texts(rows):
    return [text for row in rows[::5] for text in (row["instruction"], row["output"])]


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts, vocab_size=1024)


def test_every_text_survives(tokenizer, rows):
    samples = [text for row in rows[::7] for text in (row["instruction"], row["output"])]
    samples += ["", " ", "a  b \n\n\tc ", " n't do .", "🏴‍☠️ 𝔘𝔫𝔦 \u200c\u200d\u0000", "한국어 ಕನ್ನಡ አማርኛ", "e\u0301 é"]
    encoded = tokenizer(samples)["input_ids"]
    assert [tokenizer.decode(ids) for ids in encoded] == samples
    assert max(max(ids) for ids in encoded if ids) < len(tokenizer) == 1024


def test_same_texts_give_the_same_tokenizer(tokenizer, texts):
    again = train_tokenizer(iter(texts), vocab_size=1024)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_every_text_is_learned_from():
    learned = train_tokenizer(["hello hello", "world world"], vocab_size=300)
    assert [len(learned(word)["input_ids"]) for word in ("hello", "world")] == [1, 1]


def test_words_keep_their_vowel_signs_and_tokens_stay_short(tokenizer):
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("हिन्दी ఫ్రాన్స్‌ ไทย")
    assert len(pieces) == 3
    assert max(len(token) for token in tokenizer.get_vocab()) <= 24


def test_special_tokens(tokenizer):
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<|pad|>", "<|bos|>", "<|eos|>")
    headers = tokenizer.convert_tokens_to_ids(["<|system|>", "<|user|>", "<|assistant|>"])
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, *headers}) == 6
    assert tokenizer("日本")["input_ids"] == tokenizer("日本", add_special_tokens=False)["input_ids"]
    text = "<|bos|><|user|>a<|eos|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == "a"


def test_padding_side_is_the_callers(tokenizer):
    short, long = tokenizer("a")["input_ids"], tokenizer("a b c d e f")["input_ids"]
    pads = [tokenizer.pad_token_id] * (len(long) - len(short))
    for side, expected in (("left", pads + short), ("right", short + pads)):
        assert tokenizer(["a", "a b c d e f"], padding=True, padding_side=side)["input_ids"] == [expected, long]


CONVERSATION = [
    {"role": "system", "content": "Kurz."},
    {"role": "user", "content": " 日本の通貨は？\n"},
    {"role": "assistant", "content": "\n 日本円"},
    {"role": "user", "content": "فرنسا"},
    {"role": "assistant", "content": "يورو "},
]


def test_chat_template_renders_every_turn(tokenizer):
    expected = (
        "<|bos|><|system|>Kurz.<|eos|><|user|> 日本の通貨は？\n<|eos|><|assistant|>\n 日本円<|eos|>"
        "<|user|>فرنسا<|eos|><|assistant|>يورو <|eos|>"
    )
    assert tokenizer.apply_chat_template(CONVERSATION, tokenize=False) == expected
    ids = tokenizer.apply_chat_template(CONVERSATION)["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == len(CONVERSATION)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids) == expected


@pytest.mark.parametrize("turns", [2, 4])
def test_generation_prompt_is_a_prefix_of_the_conversation(tokenizer, turns):
    prompt, full = CONVERSATION[:turns], CONVERSATION[: turns + 1]
    options = {"add_generation_prompt": True}
    text = tokenizer.apply_chat_template(full, tokenize=False)
    assert text.startswith(tokenizer.apply_chat_template(prompt, tokenize=False, **options))
    ids = tokenizer.apply_chat_template(full)["input_ids"]
    prompt_ids = tokenizer.apply_chat_template(prompt, **options)["input_ids"]
    assert ids[: len(prompt_ids)] == prompt_ids
    assert tokenizer.decode(ids[len(prompt_ids) :]) == full[-1]["content"] + tokenizer.eos_token


def test_assistant_mask_covers_answers_and_their_end(tokenizer):
    encoded = tokenizer.apply_chat_template(CONVERSATION, return_dict=True, return_assistant_tokens_mask=True)
    said = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(said) == "\n 日本円<|eos|>يورو <|eos|>"


def test_unknown_role(tokenizer):
    with pytest.raises(jinja2.TemplateError, match=r"role: expected .* got 'tool'"):
        tokenizer.apply_chat_template([{"role": "tool", "content": ""}])


def test_save_and_reload(texts, tmp_path):
    from transformers import AutoTokenizer

    saved = train_tokenizer(texts[:200], vocab_size=300, save_dir=tmp_path)
    for loaded in (type(saved).from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded.chat_template == saved.chat_template
        assert loaded.apply_chat_template(CONVERSATION) == saved.apply_chat_template(CONVERSATION)
        assert loaded.special_tokens_map == saved.special_tokens_map
        assert loaded.decode(loaded(" 日 ,. n't")["input_ids"]) == " 日 ,. n't"


@pytest.mark.parametrize(
    ("texts", "size", "error", "message"),
    [
        ("one string", 300, TypeError, "texts: expected an iterable of strings, got one string"),
        (["a", 1], 300, TypeError, "texts: expected strings, got int at position 1"),
        ([], 300, ValueError, "texts: expected at least one string, got none"),
        (["a"], 261, ValueError, "vocab_size: expected at least 262 .*, got 261"),
    ],
)
def test_tokenizer_errors(texts, size, error, message):
    with pytest.raises(error, match=message):
        train_tokenizer(texts, vocab_size=size)
