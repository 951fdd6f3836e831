"""Batched generation of answers, and comparing them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from cc_model.data.collator import ParallelCollator


def generate_answers(
    model: Any,
    collator: ParallelCollator,
    rows: Sequence[Mapping[str, Any]],
    batch_size: int = 32,
    pivot: bool = False,
    description: str = "generate",
    progress: bool = True,
    **generation: Any,
) -> list[str]:
    """The model's answer to every row, in the order of the rows.

    Rows are batched by length, so that little is padding. A patched model connects with its Transform Matrix, or with
    the English prompts when `pivot=True`; wrap the call in `cc_model.connection_disabled(model)` for the plain model.

    Args:
        model: in evaluation mode.
        collator: that it was trained with.
        rows: with the collator's prompt columns; answers are not read.
        batch_size: rows per call of `generate`.
        pivot: read the English prompts of the rows.
        description: shown at the progress bar.
        progress: show a progress bar.
        generation: options of `model.generate`, such as `max_new_tokens=32`.
    """
    answers = [""] * len(rows)
    with tqdm(total=len(rows), desc=description, unit="row", disable=not progress) as bar:
        for chosen, tokens in generate_batches(model, collator, rows, batch_size, pivot, **generation):
            for index, text in zip(chosen, collator.tokenizer.batch_decode(tokens, skip_special_tokens=True)):
                answers[index] = text.strip()
            bar.update(len(chosen))
    return answers


@torch.no_grad()
def generate_batches(
    model: Any,
    collator: ParallelCollator,
    rows: Sequence[Mapping[str, Any]],
    batch_size: int,
    pivot: bool,
    **generation: Any,
) -> Iterator[tuple[list[int], Tensor]]:
    """Batch by batch, the numbers of its rows and the tokens that follow their prompts `(B, N)`; as `generate_answers`.

    Shorter answers are padded on the right. Rows are batched by length, so that little of a prompt is padding.
    """
    options = {"do_sample": False, "max_new_tokens": 64, **generation}
    order = sorted(range(len(rows)), key=lambda index: len(_question(rows[index])))
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        batch = collator.prompts([rows[index] for index in chosen], pivot=pivot)
        if not hasattr(model, "cc"):
            batch = {key: value for key, value in batch.items() if key in ("input_ids", "attention_mask")}
        batch = {key: value.to(model.device) for key, value in batch.items()}
        yield chosen, model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]


def _question(row: Mapping[str, Any]) -> str:
    return row["instruction"] if row.get("instruction") is not None else str(row.get("messages"))


def is_correct(answer: str, expected: str) -> bool:
    """Whether two answers are the same text, up to Unicode composition, outer spaces and case.

    Example:
        >>> is_correct(" Yen Japonais", "yen japonais"), is_correct("yen", "yen japonais")
        (True, False)
    """
    return _plain(answer) == _plain(expected)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip().casefold()


__all__ = ["generate_answers", "generate_batches", "is_correct"]
