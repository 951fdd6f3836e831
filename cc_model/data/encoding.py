"""From the columns of a row to token ids: prompt, answer and pivot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cc_model.config import check_type

Message = Mapping[str, str]
_ORDINARY = "answer"  # a text without special tokens


class Encoded(NamedTuple):
    """Token ids of one row; `answer` is empty in a prompt, `pivot` in a row without an English version."""

    prompt: list[int]
    answer: list[int]
    pivot: list[int]


class _Texts(NamedTuple):
    """What is encoded of a row. `closed`: the template, not the answer, wrote the special token at the end, if any."""

    prompt: str
    full: str | None
    pivot: str | None
    closed: bool = True


class Encoder:
    """Renders rows with the tokenizer's chat template and encodes them; see `ParallelCollator` for the columns.

    Prompt and answer are encoded together and split where the prompt's own tokens end, so that a tokenizer sees the
    answer in its place. Where the two would share a token they are encoded apart, so that the prompt is always what
    inference encodes.

    An answer ends with the token that ends a turn: the special token that the chat template writes after it, or the
    tokenizer's end-of-sequence token where the template writes none. A special token that the text of the answer itself
    ends with does not count, unless it is the end-of-sequence token.

    Args:
        tokenizer: of transformers.
        system: text of a system turn before every conversation that has none, or None.
        chat_template_kwargs: further variables of the chat template.
    """

    def __init__(self, tokenizer: Any, system: str | None = None, chat_template_kwargs: dict[str, Any] | None = None):
        if not hasattr(tokenizer, "all_special_ids"):
            raise TypeError(f"tokenizer: expected a tokenizer of transformers, got {type(tokenizer).__name__}")
        check_type("system", system, (str, type(None)), "a text or None")
        check_type("chat_template_kwargs", chat_template_kwargs, (Mapping, type(None)), "a dict or None")
        self.tokenizer = tokenizer
        self.system = system
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.special = set(tokenizer.all_special_ids)
        self.special |= {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special_texts = tuple(filter(None, tokenizer.convert_ids_to_tokens(sorted(self.special))))
        self.plain = getattr(tokenizer, "chat_template", None) is None
        if self.plain and tokenizer.eos_token is None:
            raise ValueError("tokenizer: expected a chat template or an eos_token to end an answer with, got neither")
        starts = tokenizer("a")["input_ids"][:1]
        self.starts_with_bos = tokenizer.bos_token_id is not None and starts == [tokenizer.bos_token_id]

    def encode(self, features: Sequence[Mapping[str, Any]], answers: bool) -> list[Encoded]:
        """Token ids of every row; with `answers` the rows must have one.

        Raises:
            TypeError, ValueError: a column is missing, has the wrong type or holds half of a surrogate pair; or neither
                the template nor the tokenizer has a token that ends an answer. The message names the row.
        """
        rows = [self._texts(feature, f"row {index}", answers) for index, feature in enumerate(features)]
        ids = iter(self._ids([text for row in rows for text in row[:3] if text is not None]))
        encoded = []
        for index, row in enumerate(rows):
            prompt, full, pivot = (next(ids) if text is not None else [] for text in row[:3])
            if not prompt:
                raise ValueError(f"row {index}: expected a prompt of at least one token, got an empty one")
            answer = self._answer(row, prompt, full, f"row {index}") if row.full is not None else []
            encoded.append(Encoded(prompt, answer, pivot))
        return encoded

    def _texts(self, feature: Mapping[str, Any], where: str, answers: bool) -> _Texts:
        if not isinstance(feature, Mapping):
            raise TypeError(f"{where}: expected a mapping of columns, got {type(feature).__name__}")
        conversation, answer = _conversation(feature, where, answers)
        pivot = _pivot_conversation(feature, where)
        prompt = self.render(conversation, where, prompt=True)
        pivot_text = None if pivot is None else self.render(pivot, where, prompt=True)
        if not answers:
            return _Texts(prompt, None, pivot_text)
        turn = {"role": "assistant", "content": answer}
        full = self.render([*conversation, turn], where, prompt=False)
        if not full.startswith(prompt):
            raise ValueError(
                f"{where}: the chat template writes the prompt differently when an answer follows, so the answer's "
                f"tokens cannot be told apart; expected a text that starts with {prompt[-40:]!r}"
            )
        return _Texts(prompt, full, pivot_text, self._closes(conversation, answer, where))

    def _closes(self, conversation: Sequence[Message], answer: str, where: str) -> bool:
        """Whether a special token at the end of the turn can only be the template's.

        That is so for an answer of ordinary text. For another one the template writes an ordinary answer instead, and
        what it writes after that tells.
        """
        if answer.strip() and not any(text in answer for text in self.special_texts):
            return True
        turn = {"role": "assistant", "content": _ORDINARY}
        ordinary = self.render([*conversation, turn], where, prompt=False)
        place = ordinary.rfind(_ORDINARY)
        return place >= 0 and self._end(self._ids([ordinary[place + len(_ORDINARY) :]])[0]) is not None

    def render(self, conversation: Sequence[Message], where: str = "conversation", prompt: bool = True) -> str:
        """The text of a conversation, special tokens included; with `prompt` up to where the answer begins."""
        if self.system is not None and conversation[0]["role"] != "system":
            conversation = [{"role": "system", "content": self.system}, *conversation]
        if self.plain:
            return self._plain_text(conversation, prompt)
        try:
            return self.tokenizer.apply_chat_template(
                list(conversation), tokenize=False, add_generation_prompt=prompt, **self.chat_template_kwargs
            )
        except Exception as error:  # templates raise their own errors, of any type
            raise ValueError(f"{where}: the tokenizer's chat template refused it: {error}") from error

    def _plain_text(self, conversation: Sequence[Message], prompt: bool) -> str:
        """The documented format for a tokenizer without a chat template."""
        text = self.tokenizer.bos_token if self.starts_with_bos else ""
        for message in conversation:
            role, content = message["role"], message["content"]
            if role == "assistant":
                text += f"Assistant: {content}{self.tokenizer.eos_token}\n"
            else:
                text += f"User: {content}\n" if role == "user" else f"{content}\n"
        return text + "Assistant:" if prompt else text

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Ids of texts that hold their special tokens already; a beginning-of-sequence token is never doubled."""
        bos = self.tokenizer.bos_token_id
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        for row in rows:
            while bos is not None and row[:2] == [bos, bos]:
                del row[0]
        return rows

    def _answer(self, row: _Texts, prompt: list[int], full: list[int], where: str) -> list[int]:
        """The answer's ids up to and including the token that ends the turn."""
        if full[: len(prompt)] == prompt:
            answer = full[len(prompt) :]
        else:
            answer = self._ids([str(row.full)[len(row.prompt) :]])[0]
        end = self._end(answer)
        eos = self.tokenizer.eos_token_id
        if end is not None and (row.closed or answer[end] == eos):
            return answer[: end + 1]
        if eos is None:
            raise ValueError(
                f"{where}: expected a special token after the answer in the chat template, or an eos_token of the "
                "tokenizer, to teach the model where an answer ends; got neither"
            )
        return [*answer, eos]

    def _end(self, ids: list[int]) -> int | None:
        """Index of the last special token if nothing but white space follows it; None otherwise.

        Templates may write a line break after the end of a turn, which a model never gets to generate.
        """
        special = [index for index, token in enumerate(ids) if token in self.special]
        return special[-1] if special and not self.tokenizer.decode(ids[special[-1] + 1 :]).strip() else None


def _conversation(feature: Mapping[str, Any], where: str, answers: bool) -> tuple[list[Message], str]:
    """The turns up to the answer, and the answer; `""` where none is asked for."""
    if feature.get("messages") is None:
        turns: list[Message] = [{"role": "user", "content": _text(feature, "instruction", where, " or messages")}]
        return turns, _text(feature, "output", where) if answers else ""
    turns = _turns(feature, "messages", where)
    if answers and turns[-1]["role"] != "assistant":
        raise ValueError(f"{where}: column 'messages' must end with an assistant turn, got {turns[-1]['role']!r}")
    answer = turns.pop()["content"] if turns[-1]["role"] == "assistant" else ""
    if not turns:
        raise ValueError(f"{where}: column 'messages' must hold a turn before the answer, got the answer alone")
    return turns, answer


def _pivot_conversation(feature: Mapping[str, Any], where: str) -> list[Message] | None:
    """The English turns without an answer; None for a row without a pivot."""
    if feature.get("messages_en"):
        turns = _turns(feature, "messages_en", where)
        if turns[-1]["role"] == "assistant":
            turns.pop()
        return turns or None
    if feature.get("instruction_en") is None:
        return None
    text = _text(feature, "instruction_en", where)
    return [{"role": "user", "content": text}] if text.strip() else None


def _text(feature: Mapping[str, Any], column: str, where: str, alternative: str = "") -> str:
    if column not in feature:
        raise ValueError(
            f"{where}: column {column!r}{alternative} is missing, got {sorted(map(str, feature))}; Trainer "
            "drops text columns unless it is told remove_unused_columns=False"
        )
    if not isinstance(feature[column], str):
        raise TypeError(f"{where}: column {column!r} must be text, got {type(feature[column]).__name__}")
    check_unicode(feature[column], f"{where}: column {column!r}")
    return feature[column]


def _turns(feature: Mapping[str, Any], column: str, where: str) -> list[Message]:
    """A chat column, checked; a new list."""
    turns = feature[column]
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise TypeError(f"{where}: column {column!r} must be a list of messages, got {type(turns).__name__}")
    if not turns:
        raise ValueError(f"{where}: column {column!r} must hold at least one message, got none")
    for turn in turns:
        texts = [turn.get(key) for key in ("role", "content")] if isinstance(turn, Mapping) else [None]
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(
                    f"{where}: column {column!r}: expected messages with text 'role' and 'content', got {turn}"
                )
            check_unicode(text, f"{where}: column {column!r}")
    return list(turns)


def check_unicode(text: str, where: str) -> None:
    """Raise for text that no file and no tokenizer takes: half of a surrogate pair, which JSON can spell (`\\ud800`).

    Raises:
        ValueError: with `where` in front.

    Example:
        >>> check_unicode("日本 😀", "row 0: column 'output'")
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} must be valid Unicode text, got the lone surrogate {text[error.start]!r} at {error.start}"
        ) from None


__all__ = ["Encoded", "Encoder", "check_unicode"]
