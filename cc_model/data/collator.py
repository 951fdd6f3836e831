"""`ParallelCollator`: rows with a prompt, its English version and an answer, as one batch of tensors."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cc_model.config import check_flag
from cc_model.data.columns import LOSS_ROWS
from cc_model.data.encoding import Encoded, Encoder
from cc_model.data.positions import IGNORE_INDEX
from cc_model.data.published_positions import MARKERS, detect_template, published_position
from cc_model.data.stacking import loss_rows, padded, stacked, with_shape

logger = logging.getLogger("cc_model")

POSITIONS = ("last", "published")


class _Row(NamedTuple):
    """One row cut to `max_length`; indices count from the row's first token, −1 for no pivot."""

    prompt: list[int]
    answer: list[int]
    pivot: list[int]
    connection_index: int
    pivot_index: int


class ParallelCollator:
    """Makes training batches with a cross-lingual connection from rows of text. For `Trainer(data_collator=...)`.

    Columns of a row, of which others are ignored:

    | column | meaning |
    |---|---|
    | `instruction` | the question |
    | `instruction_en` | its English version; missing, None or empty: no pivot, the row trains plainly |
    | `output` | the answer |
    | `messages` | instead: a chat of `{"role", "content"}` that ends with the assistant's answer |
    | `messages_en` | its English version, with or without an answer, which is not read |

    Texts are written with the tokenizer's chat template. Without one the format is, with the beginning-of-sequence
    token where the tokenizer adds one:

        User: {instruction}
        Assistant: {output}{eos_token}

    The batch, tensors only (int64), whether or not any row has a pivot:

    | key | shape | meaning |
    |---|---|---|
    | `input_ids`, `attention_mask` | (B, T) | prompt and answer |
    | `labels` | (B, T) | −100 on prompt and padding; the answer with its end-of-turn token |
    | `pivot_input_ids`, `pivot_attention_mask` | (B, S) | English prompt; all-zero mask: no pivot; S = 1 if none has |
    | `connection_index` | (B,) | `position="last"`: the last prompt token, the one before the first label |
    | `pivot_index` | (B,) | the same rule in the English prompt; −1 without a pivot |

    With `share_pivots` each distinct English prompt of the batch stands there once: `pivot_input_ids`,
    `pivot_attention_mask` and `pivot_index` have P rows (P = 1 if there is none), and `pivot_row` `(B,)` says which one
    a row reads, −1 for none. With `loss_only` there are `loss_rows` `(K,)`: the flattened tokens whose next token has a
    label, then −1 up to a round number; a patched model in training runs head and loss on these alone. Either adds
    `batch_shape` `(B, N, P, K, 0)`, which holds no number; by it the forward sees when something has cut the batch.

    A row longer than `max_length` loses the end of its answer first, but not its first token, then the beginning of its
    prompt; so does a long pivot. Neither loses the connection index. `collator.truncated` counts such rows (in the
    process that collates) and the first one is reported.

    Args:
        tokenizer: of transformers, with its `padding_side`. Without a padding token the end token pads.
        position: where to connect. `"last"`, or `"published"` for the published code's positions, by the markers of the
            Llama 3, Qwen2 and Mistral templates; see `cc_model.data.published_positions`.
        max_length: most tokens of a row, and of a pivot.
        pad_to_multiple_of: round T and S up to a multiple.
        system: text of a system turn for conversations without one.
        chat_template_kwargs: further variables of the chat template, such as `{"enable_thinking": False}`.
        share_pivots: send each distinct English prompt of a batch once. The pivot pass then costs what its distinct
            prompts cost: put translations of one prompt into one batch.
        loss_only: name the tokens that head and loss have to read. The loss and its gradients stay the same; in
            training the model's logits are those of these tokens, `(1, K, vocabulary)`.
        packed: put the examples one after the other into one row, without padding, for training: `input_ids`, `labels`
            and `position_ids` (which restart at each example) are (1, T), there is no `attention_mask`, and
            `connection_index` counts through the row. Pivots stay padded, (N, S) for N examples.

    Raises:
        ValueError, TypeError: an argument is out of range; in a call, a column is missing or has the wrong type, or
            `"published"` finds no marker or an index outside the prompt. The message names row and column.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = ["<unk>", "</s>", "User", "Assistant", ":", "capital", "Hauptstadt", "Paris"]
        >>> core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
        >>> core.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")
        >>> collator = ParallelCollator(tokenizer)
        >>> row = {"instruction": "Hauptstadt", "instruction_en": "capital", "output": "Paris"}
        >>> batch = collator([row])
        >>> batch["input_ids"]  # User : Hauptstadt Assistant : Paris </s>
        tensor([[2, 4, 6, 3, 4, 7, 1]])
        >>> batch["labels"]
        tensor([[-100, -100, -100, -100, -100,    7,    1]])
        >>> batch["pivot_input_ids"], batch["connection_index"], batch["pivot_index"]
        (tensor([[2, 4, 5, 3, 4]]), tensor([4]), tensor([4]))
    """

    def __init__(
        self,
        tokenizer: Any,
        position: str = "last",
        max_length: int = 1024,
        pad_to_multiple_of: int | None = None,
        system: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        packed: bool = False,
        share_pivots: bool = False,
        loss_only: bool = False,
    ) -> None:
        if position not in POSITIONS:
            raise ValueError(f"position: expected one of {POSITIONS}, got {position!r}")
        if not isinstance(max_length, int) or max_length < 2:
            raise ValueError(f"max_length: expected an integer of at least 2 (prompt and answer), got {max_length!r}")
        if pad_to_multiple_of is not None and (not isinstance(pad_to_multiple_of, int) or pad_to_multiple_of < 1):
            raise ValueError(f"pad_to_multiple_of: expected a positive integer or None, got {pad_to_multiple_of!r}")
        for name, flag in (("packed", packed), ("share_pivots", share_pivots), ("loss_only", loss_only)):
            check_flag(name, flag)
        self.tokenizer = tokenizer
        self.position = position
        self.max_length = max_length
        self.pad_to_multiple_of = pad_to_multiple_of
        self.packed = packed
        self.share_pivots = share_pivots
        self.loss_only = loss_only
        self.truncated = 0
        self.encoder = Encoder(tokenizer, system, chat_template_kwargs)
        self._template = detect_template(tokenizer.get_vocab()) if position == "published" else None
        self._warned_position = False
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._pad = 0 if pad is None else pad

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A training batch; see the class for columns, keys and errors."""
        rows = self._rows(features, answers=True)
        left = self.tokenizer.padding_side == "left"
        if self.packed:
            batch = self._packed(rows)
        else:
            labels = [[IGNORE_INDEX] * len(row.prompt) + row.answer for row in rows]
            batch = self._main([row.prompt + row.answer for row in rows], rows, left)
            batch["labels"] = padded(labels, IGNORE_INDEX, batch["input_ids"].shape[1], left)
        if self.loss_only:
            batch[LOSS_ROWS] = loss_rows(batch["labels"])
        return with_shape({**batch, **self._pivots(rows, left)})

    def prompts(self, features: Sequence[Mapping[str, Any]], pivot: bool = True) -> dict[str, Tensor]:
        """Left-padded prompts without answers, for `model.generate(**batch)` and `fit_transform_matrix`.

        The `output` column and a final assistant turn are not read. The keys are those of a training batch but
        `labels`; rows are padded on the left whatever the tokenizer's side, and `packed` has no effect.

        Args:
            features: rows with the columns of the class.
            pivot: also give the pivot tensors. `generate` reads the English prompt when it gets them and uses the
                Transform Matrix when it does not; hence `pivot=False` for real inference.

        Returns:
            `input_ids` and `attention_mask` `(B, T)`, `connection_index` `(B,)`; with `pivot` also `pivot_input_ids`
            and `pivot_attention_mask` `(B, S)`, `pivot_index` `(B,)`, or what `share_pivots` gives. All int64, on the
            CPU.

        Raises:
            ValueError: no rows; a column is missing; `messages` holds no turn before the answer; the chat template
                refuses a row; or `position="published"` finds no marker or an index outside the prompt.
            TypeError: a row is no mapping, or a column has the wrong type.

        Example:
            >>> from tokenizers import Tokenizer, models, pre_tokenizers
            >>> from transformers import PreTrainedTokenizerFast
            >>> words = {"<unk>": 0, "</s>": 1, "User": 2, "Assistant": 3, ":": 4, "hola": 5, "mundo": 6}
            >>> core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
            >>> core.pre_tokenizer = pre_tokenizers.Whitespace()
            >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")
            >>> rows = [{"instruction": "hola"}, {"instruction": "hola mundo"}]
            >>> batch = ParallelCollator(tokenizer).prompts(rows, pivot=False)
            >>> batch["input_ids"], batch["connection_index"]
            (tensor([[1, 2, 4, 5, 3, 4],
                     [2, 4, 5, 6, 3, 4]]), tensor([5, 5]))
        """
        rows = self._rows(features, answers=False)
        batch = self._main([row.prompt for row in rows], rows, left=True)
        return with_shape({**batch, **self._pivots(rows, left=True)}) if pivot else batch

    def lengths(self, feature: Mapping[str, Any]) -> int:
        """Tokens of a row after truncation, prompt + answer + pivot: what a training step pays for. For bucketing.

        Example:
            >>> from tokenizers import Tokenizer, models, pre_tokenizers
            >>> from transformers import PreTrainedTokenizerFast
            >>> core = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
            >>> core.pre_tokenizer = pre_tokenizers.Whitespace()
            >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")
            >>> row = {"instruction": "hola", "instruction_en": "hello", "output": "mundo"}
            >>> ParallelCollator(tokenizer).lengths(row)  # 5 prompt, 2 answer, 5 pivot
            12
        """
        encoded = self.encoder.encode([feature], answers=True)[0]
        return sum(map(len, self._cut(encoded)))

    def _rows(self, features: Sequence[Mapping[str, Any]], answers: bool) -> list[_Row]:
        if not features:
            raise ValueError("features: expected at least one row, got none")
        rows = []
        for index, encoded in enumerate(self.encoder.encode(features, answers)):
            kept = self._cut(encoded)
            if kept != encoded:
                self._count_truncated(index, encoded)
            connection = self._index(encoded.prompt, kept.prompt, f"row {index}: connection_index")
            pivot = self._index(encoded.pivot, kept.pivot, f"row {index}: pivot_index") if kept.pivot else -1
            rows.append(_Row(*kept, connection, pivot))
        return rows

    def _cut(self, encoded: Encoded) -> Encoded:
        """At most `max_length` tokens: the answer's end goes first, then the prompt's beginning."""
        answer = encoded.answer[: max(1, self.max_length - len(encoded.prompt))]
        return Encoded(encoded.prompt[-(self.max_length - len(answer)) :], answer, encoded.pivot[-self.max_length :])

    def _count_truncated(self, index: int, encoded: Encoded) -> None:
        if self.truncated == 0:
            logger.warning(
                "collator: row %d has %d prompt + %d answer tokens and %d pivot tokens, more than max_length=%d, and "
                "was truncated (answer's end, then the prompt's beginning; the connection index stays); further rows "
                "are counted in collator.truncated",
                *(index, len(encoded.prompt), len(encoded.answer), len(encoded.pivot), self.max_length),
            )
        self.truncated += 1

    def _index(self, whole: list[int], kept: list[int], what: str) -> int:
        """Where `kept`, the end of the prompt `whole`, connects."""
        if self._template is None:
            return len(kept) - 1
        template, marker_id = self._template
        position = published_position(whole, template, marker_id)
        index = position - (len(whole) - len(kept))
        if not 0 <= index < len(kept):
            marker = MARKERS[template]
            raise ValueError(
                f"{what}: position='published' expects at least {marker.occurrence} {marker.token} in a {template} "
                f"prompt and its position within the {len(kept)} prompt tokens, got position {index} with "
                f"{whole.count(marker_id)} of them; use position='last'"
            )
        if index != len(kept) - 1 - MARKERS[template].from_end and not self._warned_position:
            self._warned_position = True
            logger.warning(
                "collator: %s is %d of %d prompt tokens: with this chat template (or several turns) the published rule "
                "does not give the end of the prompt; use position='last', or the published template",
                *(what, index, len(kept)),
            )
        return index

    def _main(self, tokens: list[list[int]], rows: list[_Row], left: bool) -> dict[str, Tensor]:
        ids, mask, starts = stacked(tokens, self._pad, self.pad_to_multiple_of, left)
        index = torch.tensor([start + row.connection_index for start, row in zip(starts, rows)])
        return {"input_ids": ids, "attention_mask": mask, "connection_index": index}

    def _packed(self, rows: list[_Row]) -> dict[str, Tensor]:
        """One row of all examples. Rounding up lengthens the last one, so that the padding is no example of its own."""
        examples = [row.prompt + row.answer for row in rows]
        starts = [0, *accumulate(map(len, examples))]
        step = self.pad_to_multiple_of or 1
        padding = -starts[-1] % step
        examples[-1] = examples[-1] + [self._pad] * padding
        labels = [[IGNORE_INDEX] * len(row.prompt) + row.answer for row in rows] + [[IGNORE_INDEX] * padding]
        return {
            "input_ids": torch.tensor([list(chain.from_iterable(examples))]),
            "position_ids": torch.tensor([list(chain.from_iterable(range(len(tokens)) for tokens in examples))]),
            "labels": torch.tensor([list(chain.from_iterable(labels))]),
            "connection_index": torch.tensor([start + row.connection_index for start, row in zip(starts, rows)]),
        }

    def _pivots(self, rows: list[_Row], left: bool) -> dict[str, Tensor]:
        """The pivot tensors: a pivot for each row, or each distinct one once, in the order of their first rows."""
        pivots = [(tuple(row.pivot), row.pivot_index) for row in rows]
        read: dict[str, Tensor] = {}
        if self.share_pivots:
            distinct = list(dict.fromkeys(pivot for pivot in pivots if pivot[0]))
            place = {pivot: at for at, pivot in enumerate(distinct)}
            read["pivot_row"] = torch.tensor([place.get(pivot, -1) for pivot in pivots])
            pivots = distinct or [((), -1)]
        ids, mask, starts = stacked([list(tokens) for tokens, _ in pivots], self._pad, self.pad_to_multiple_of, left)
        index = [start + at if tokens else -1 for start, (tokens, at) in zip(starts, pivots)]
        return {"pivot_input_ids": ids, "pivot_attention_mask": mask, "pivot_index": torch.tensor(index), **read}


__all__ = ["ParallelCollator"]
