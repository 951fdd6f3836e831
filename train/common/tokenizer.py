"""A small byte-level BPE tokenizer with a chat template, for models that are trained from scratch.

Any text survives encoding and decoding unchanged, in every script: the base alphabet is the 256 bytes. The template is

    <|bos|><|system|>text<|eos|><|user|>text<|eos|><|assistant|>text<|eos|>

and the generation prompt ends after `<|assistant|>`. A special token always cuts the text, hence the tokens of the
prompt are an exact prefix of the tokens of the full conversation, and the length of one is where the answer starts in
the other.
"""

import os
from collections.abc import Iterable, Iterator
from itertools import chain

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
ROLES = ("system", "user", "assistant")
_SPECIAL = (PAD, BOS, EOS, *(f"<|{role}|>" for role in ROLES))
_ALPHABET = pre_tokenizers.ByteLevel.alphabet()

# Vowel signs and joiners stay inside a word. GPT-2's expression cuts Indic and Thai words at each of them.
_WORDS = Regex(r" ?[\p{L}\p{M}\u200c\u200d]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}\u200c\u200d]+|\s+(?!\S)|\s+")
# In characters, where a byte is one. Scripts without spaces would otherwise get tokens that are whole sentences.
_LONGEST_TOKEN = 24

# `generation` marks what the assistant says, for `apply_chat_template(..., return_assistant_tokens_mask=True)`.
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception(\"role: expected 'system', 'user' or 'assistant', got '\" ~ message['role'] ~ \"'\") }}"
    "{%- endif %}"
    "{{- '<|' ~ message['role'] ~ '|>' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{%- generation %}{{- message['content'] ~ eos_token }}{%- endgeneration %}"
    "{%- else %}{{- message['content'] ~ eos_token }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)


def _strings(texts: Iterable[str]) -> Iterator[str]:
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts: expected strings, got {type(text).__name__} at position {index}")
        yield text


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 4096, save_dir: str | os.PathLike[str] | None = None
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on texts; the same texts in the same order give the same tokenizer.

    It pads on the right; for generation set `tokenizer.padding_side = "left"`. Plain encoding adds no special tokens:
    the beginning of the sequence is part of the chat template.

    Args:
        texts: any iterable of strings, read once.
        vocab_size: upper bound, with the 256 bytes and the 6 special tokens. A small corpus may not fill it.
        save_dir: also call `save_pretrained(save_dir)`.

    Raises:
        TypeError: `texts` is one string, or holds something else than strings.
        ValueError: `texts` is empty, or `vocab_size` has no room for bytes and special tokens.

    >>> tokenizer = train_tokenizer(["Japan", "Japon", "日本"], vocab_size=300)
    >>> tokenizer.decode(tokenizer("Ιαπωνία ญี่ปุ่น")["input_ids"])
    'Ιαπωνία ญี่ปุ่น'
    >>> messages = [{"role": "user", "content": "Japan"}, {"role": "assistant", "content": "日本"}]
    >>> tokenizer.apply_chat_template(messages, tokenize=False)
    '<|bos|><|user|>Japan<|eos|><|assistant|>日本<|eos|>'
    >>> tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    '<|bos|><|user|>Japan<|eos|><|assistant|>'
    """
    if isinstance(texts, str):
        raise TypeError("texts: expected an iterable of strings, got one string; pass [text]")
    smallest = len(_ALPHABET) + len(_SPECIAL)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size: expected at least {smallest} ({len(_ALPHABET)} bytes and {len(_SPECIAL)} special tokens), "
            f"got {vocab_size}"
        )
    stream = _strings(texts)
    first = next(stream, None)
    if first is None:
        raise ValueError("texts: expected at least one string, got none")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(_ALPHABET),
        max_token_length=_LONGEST_TOKEN,
        show_progress=False,
    )
    bpe.train_from_iterator(chain([first], stream), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=list(_SPECIAL[3:]),
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    if save_dir is not None:
        tokenizer.save_pretrained(save_dir)
    return tokenizer


__all__ = ["BOS", "CHAT_TEMPLATE", "EOS", "PAD", "ROLES", "train_tokenizer"]
