"""The English question and then the question, in one context: what a plain model reads with `--english_in_prompt`.

A CC model gets English by its connection. A plain model gets it as text, in training and when it is asked; that costs
tokens in every layer and in the cache, and needs nothing of ours where the model runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from cc_model.data.collator import ParallelCollator
from train.common.rows import has_pivot

WITHOUT_ENGLISH = {"instruction_en": "", "messages_en": None}


def with_english(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the English question before the question; a row without an English version stays as it is.

    In a chat each turn of the user gets its own English version before it; the other turns stay. A row that is not as
    `ParallelCollator` wants it stays as it is, too: the collator says what is wrong.

    Args:
        rows: with the collator's columns.

    Returns:
        New rows, without an English version.

    Raises:
        ValueError: a chat and its English version have not the same number of user turns; names the row.

    Example:
        >>> with_english([{"instruction": "Land?", "instruction_en": "Country?"}, {"instruction": "Hi"}])
        [{'instruction': 'Country?\\n\\nLand?', 'instruction_en': ''}, {'instruction': 'Hi'}]
        >>> chat = [{"role": "system", "content": "Kurz."}, {"role": "user", "content": "Land?"}]
        >>> with_english([{"messages": chat, "messages_en": [{"role": "user", "content": "Country?"}]}])[0]["messages"]
        [{'role': 'system', 'content': 'Kurz.'}, {'role': 'user', 'content': 'Country?\\n\\nLand?'}]
    """
    return [_joined(row, f"row {index}") if has_pivot(row) else dict(row) for index, row in enumerate(rows)]


def _joined(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    chat = row.get("messages")
    turns: Any = [_turn(row.get("instruction"))] if chat is None else chat
    english: Any = row.get("messages_en") or [_turn(row.get("instruction_en"))]
    if not (_readable(turns) and _readable(english)):
        return dict(row)
    texts = [turn["content"] for turn in english if turn["role"] == "user"]
    asked = [number for number, turn in enumerate(turns) if turn["role"] == "user"]
    if len(texts) != len(asked):
        raise ValueError(
            f"{where}: expected a chat and its English version with the same number of user turns, because each is "
            f"read with its own, got {len(asked)} and {len(texts)}"
        )
    joined = [dict(turn) for turn in turns]
    for number, text in zip(asked, texts):
        if text.strip():
            joined[number]["content"] = f"{text}\n\n{joined[number]['content']}"
    read = {name: value for name, value in WITHOUT_ENGLISH.items() if name in row}
    if chat is None:
        return {**row, "instruction": joined[0]["content"], **read}
    return {**row, "messages": joined, **read}


def _turn(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _readable(turns: Any) -> bool:
    """Whether these are turns with texts."""
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        return False
    return all(
        isinstance(turn, Mapping) and all(isinstance(turn.get(key), str) for key in ("role", "content"))
        for turn in turns
    )


class EnglishInPrompt(ParallelCollator):
    """A `ParallelCollator` that reads rows as `with_english` gives them. Its batches have no pivots.

    Arguments, columns and errors are those of `ParallelCollator`, and what `with_english` raises.

    Example:
        >>> from train.common.models import new_tokenizer
        >>> row = {"instruction": "Land?", "instruction_en": "Country?", "output": "Japan"}
        >>> tokenizer = new_tokenizer([row], 300)
        >>> tokenizer.decode(EnglishInPrompt(tokenizer).prompts([row], pivot=False)["input_ids"][0])
        '<|bos|><|user|>Country?\\n\\nLand?<|eos|><|assistant|>'
    """

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A training batch."""
        return super().__call__(with_english(features))

    def prompts(self, features: Sequence[Mapping[str, Any]], pivot: bool = True) -> dict[str, Tensor]:
        """A batch of prompts, padded on the left."""
        return super().prompts(with_english(features), pivot)

    def lengths(self, feature: Mapping[str, Any]) -> int:
        """Tokens of a row after truncation."""
        return super().lengths(with_english([feature])[0])

    def alone(self) -> ParallelCollator:
        """The same collator, which reads the question alone: for a student of a model that reads both.

        Example:
            >>> from train.common.models import new_tokenizer
            >>> row = {"instruction": "Land?", "instruction_en": "Country?", "output": "Japan"}
            >>> tokenizer = new_tokenizer([row], 300)
            >>> tokenizer.decode(EnglishInPrompt(tokenizer).alone()([row])["input_ids"][0])
            '<|bos|><|user|>Land?<|eos|><|assistant|>Japan<|eos|>'
        """
        collator = ParallelCollator.__new__(ParallelCollator)
        vars(collator).update(vars(self))
        return collator


def make_collator(tokenizer: Any, english_in_prompt: bool = False, **options: Any) -> ParallelCollator:
    """The collator of a training's options: `EnglishInPrompt`, or `ParallelCollator`, whose options the others are.

    Example:
        >>> from train.common.models import new_tokenizer
        >>> tokenizer = new_tokenizer([{"instruction": "Land?"}], 300)
        >>> [type(make_collator(tokenizer, english, max_length=64)).__name__ for english in (False, True)]
        ['ParallelCollator', 'EnglishInPrompt']
    """
    return (EnglishInPrompt if english_in_prompt else ParallelCollator)(tokenizer, **options)


__all__ = ["EnglishInPrompt", "make_collator", "with_english"]
