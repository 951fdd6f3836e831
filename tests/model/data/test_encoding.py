"""Every answer teaches the model where to stop, whatever template and answer end with; bad text names its row."""

import pytest
from word_tokenizers import ROW, make_tokenizer

from cc_model.data.encoding import Encoder

TURNS = "{% for message in messages %}{{ message['role'] ~ ' : ' ~ message['content'] ~ END }}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
TEMPLATES = {  # by what they write after a turn
    "nothing": TURNS.replace(" ~ END", " ~ ' '") + PROMPT,
    "a line break": TURNS.replace("END", r"'\n'") + PROMPT,
    "the end of a turn": TURNS.replace("END", "' [/INST]'") + PROMPT,
    "end and line break": TURNS.replace("END", r"' </s>\n'") + PROMPT,
    "the end of text": TURNS.replace("END", "' ' ~ eos_token") + PROMPT,
}
ENDS = {"the end of a turn": "[/INST]"}  # the others: </s>


@pytest.fixture
def encode():
    """The answer of a row as words, with one of the templates."""

    def run(template, answer, **row):
        tokenizer = make_tokenizer("mistral")
        tokenizer.chat_template = TEMPLATES[template]
        encoded = Encoder(tokenizer).encode([{"instruction": "eins", **row, "output": answer}], answers=True)[0]
        return [word for word in tokenizer.convert_ids_to_tokens(encoded.answer) if word.strip()]

    return run


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    "answer", ["zwei", "zwei [INST]", "[INST]", "zwei <unk>", "zwei <pad> ", "[/INST] zwei", "zwei [INST] [INST]", ""]
)
def test_every_answer_ends_with_one_end(encode, template, answer):
    assert encode(template, answer) == [*answer.split(), ENDS.get(template, "</s>")]


@pytest.mark.parametrize("template", ["nothing", "a line break"])
@pytest.mark.parametrize("answer", ["zwei </s>", "</s>", "zwei [INST] </s>"])
def test_an_answer_that_brings_the_end_of_text_gets_no_second_one(encode, template, answer):
    assert encode(template, answer) == answer.split()


def test_the_end_of_a_turn_in_the_answer_is_not_the_templates(encode):
    """The same token, once from the answer and once from the template; and from the answer alone."""
    assert encode("the end of a turn", "zwei [/INST]") == ["zwei", "[/INST]", "[/INST]"]
    assert encode("nothing", "zwei [/INST]") == ["zwei", "[/INST]", "</s>"]


def test_the_plain_format_ends_too():
    tokenizer = make_tokenizer("plain")
    for answer in ("zwei", "zwei <pad>", "zwei </s>"):
        ids = Encoder(tokenizer).encode([{"instruction": "eins", "output": answer}], answers=True)[0].answer
        assert tokenizer.convert_ids_to_tokens(ids)[-1] == "</s>"
        assert len(ids) == len(answer.split()) + 1


def test_neither_template_nor_tokenizer_has_an_end():
    tokenizer = make_tokenizer("mistral")
    tokenizer.chat_template = TEMPLATES["nothing"]
    tokenizer.eos_token = None
    for answer in ("zwei", "zwei [INST]"):
        with pytest.raises(ValueError, match="row 0: expected a special token after the answer in the chat template"):
            Encoder(tokenizer).encode([{**ROW, "output": answer}], answers=True)
    tokenizer.chat_template = TEMPLATES["the end of a turn"]
    assert Encoder(tokenizer).encode([ROW], answers=True)[0].answer[-1] == tokenizer.convert_tokens_to_ids("[/INST]")


CHAT = [{"role": "user", "content": "eins"}, {"role": "assistant", "content": "zwei"}]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({**ROW, "instruction": "eins \ud800"}, "instruction"),
        ({**ROW, "instruction_en": "\udfff"}, "instruction_en"),
        ({**ROW, "output": "zwei \ud83d zwei"}, "output"),
        ({"messages": [{**CHAT[0], "content": "\ud800"}, CHAT[1]]}, "messages"),
        ({"messages": CHAT, "messages_en": [{**CHAT[0], "content": "\ud800"}]}, "messages_en"),
    ],
)
def test_lone_surrogates(row, column):
    with pytest.raises(
        ValueError, match=f"row 1: column '{column}' must be valid Unicode text, got the lone surrogate"
    ):
        Encoder(make_tokenizer("plain")).encode([ROW, row], answers=True)
    whole = {**ROW, "output": "zwei 😀"}
    assert Encoder(make_tokenizer("plain")).encode([whole], answers=True)[0].answer
