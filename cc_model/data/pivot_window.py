"""`PivotWindow`: the English prompts of several batches, each distinct one once.

The batches are read on the host, where equal prompts are found. What is left to the device is one bank for all of them
(`cc_model.forward.bank.pivot_bank`), which takes the place of each batch's own pivots.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cc_model.data.columns import PIVOT_COLUMNS, check_connection_arguments, check_whole


class Prompt(NamedTuple):
    """An English prompt without its padding: equal ones are read once."""

    tokens: tuple[int, ...]
    attended: tuple[bool, ...]
    captured: int  # which of the tokens


class PivotWindow:
    """The micro-batches of one optimizer step, and the English prompts that they read.

    Args:
        batches: micro-batches as the collator made them; those with `pivot_input_ids` are read through the bank.

    Attributes:
        reads: a micro-batch has pivot tensors, with or without a usable prompt in them.
        prompts: each distinct prompt once, shorter ones first.
        left: prompts are padded on the left.
        tokens: B · T of the largest micro-batch.
    """

    def __init__(self, batches: list[Any]) -> None:
        read = [(batch, _prompts_of(batch)) for batch in batches if _has_prompts(batch)]
        self.reads = bool(read)
        self.left = any(_starts_with_padding(batch) for batch, _ in read)
        distinct = {prompt for _, prompts in read for prompt in prompts if prompt is not None}
        self.prompts = sorted(distinct, key=lambda prompt: (len(prompt.tokens), prompt))
        self.tokens = max((_main_tokens(batch) for batch, _ in read), default=0)
        place: dict[Prompt | None, int] = {prompt: row for row, prompt in enumerate(self.prompts)}
        # The batches are kept as well: an id belongs to one object only as long as that object lives.
        self._rows = {id(batch): (batch, [place.get(prompt, -1) for prompt in prompts]) for batch, prompts in read}

    def holds(self, batch: Any) -> bool:
        """Whether `batch` is one of these micro-batches, by identity, and has English prompts."""
        return id(batch) in self._rows

    def parts(self, tokens: int) -> list[dict[str, Tensor]]:
        """Arguments of `cc_model.pivot_bank`, in the order of `prompts`: padded, of at most `tokens` tokens each.

        A prompt that is longer than that is a part of its own.
        """
        parts: list[list[Prompt]] = []
        for prompt in self.prompts:  # the longest of a part comes last
            if parts and (len(parts[-1]) + 1) * len(prompt.tokens) <= tokens:
                parts[-1].append(prompt)
            else:
                parts.append([prompt])
        return [_padded(part, self.left) for part in parts]

    def through_bank(self, batch: Any, bank: Tensor) -> dict[str, Any]:
        """The micro-batch `batch` with `bank` `(L, P, d)` in the place of its pivots."""
        _, rows = self._rows[id(batch)]
        kept = {name: value for name, value in batch.items() if name not in PIVOT_COLUMNS}
        given = batch.get("pivot_row")
        own = torch.tensor(rows, dtype=torch.int64, device=batch["pivot_input_ids"].device)
        if given is not None:  # −1, and what is out of range, reads nothing
            valid = (given >= 0) & (given < own.shape[0])
            own = torch.where(valid, own[given.long().clamp(0, own.shape[0] - 1)], -1)
        return {**kept, "pivot_bank": bank, "pivot_row": own}


def _has_prompts(batch: Any) -> bool:
    return isinstance(batch, Mapping) and isinstance(batch.get("pivot_input_ids"), Tensor)


def _main_tokens(batch: Any) -> int:
    tokens = batch.get("input_ids")
    return (tokens if tokens is not None else batch["inputs_embeds"][..., 0]).numel()


def _starts_with_padding(batch: Any) -> bool:
    mask = batch.get("pivot_attention_mask")
    return mask is not None and bool(((mask[:, 0] == 0) & (mask != 0).any(dim=1)).any())


def _prompts_of(batch: Any) -> list[Prompt | None]:
    """The prompts of a micro-batch without padding; None for a row that has none or an index out of range.

    Raises:
        TypeError, ValueError: as the forward does, which does not get to see these tensors.
    """
    check_whole(batch)
    given = {name: batch.get(name) for name in (*PIVOT_COLUMNS, "pivot_row")}
    entries = given["pivot_input_ids"] if given["pivot_row"] is None else given["pivot_row"]
    check_connection_arguments(given, len(entries), layers=0)
    ids, mask, index = (batch.get(name) for name in PIVOT_COLUMNS)
    attended = (torch.ones_like(ids) if mask is None else mask != 0).bool().tolist()
    captured = [None] * len(attended) if index is None else index.tolist()
    return [_prompt(*row) for row in zip(ids.tolist(), attended, captured, strict=True)]


def _prompt(tokens: list[int], attended: list[bool], index: int | None) -> Prompt | None:
    if True not in attended:
        return None
    first, last = attended.index(True), len(attended) - 1 - attended[::-1].index(True)
    index = last if index is None else index
    if not 0 <= index < len(tokens):
        return None
    first, end = min(first, index), max(last, index) + 1
    return Prompt(tuple(tokens[first:end]), tuple(attended[first:end]), index - first)


def _padded(prompts: list[Prompt], left: bool) -> dict[str, Tensor]:
    width = max(len(prompt.tokens) for prompt in prompts)
    ids, mask, index = [], [], []
    for prompt in prompts:
        padding = [0] * (width - len(prompt.tokens))
        tokens, attended = list(prompt.tokens), list(map(int, prompt.attended))
        ids.append(padding + tokens if left else tokens + padding)
        mask.append(padding + attended if left else attended + padding)
        index.append(prompt.captured + (len(padding) if left else 0))
    return dict(zip(PIVOT_COLUMNS, map(torch.tensor, (ids, mask, index)), strict=True))


__all__ = ["PivotWindow"]
