"""Rows of questions and answers: which have an English version, and whether every one can be trained on."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from cc_model.data.collator import ParallelCollator

if TYPE_CHECKING:  # an experiment on prepared rows runs where datasets is not installed
    from datasets import Dataset

PIVOTS = ("instruction_en", "messages_en")


def has_pivot(row: Mapping[str, Any]) -> bool:
    """Whether a row has an English version.

    Example:
        >>> has_pivot({"instruction_en": "Hello"}), has_pivot({"instruction_en": ""})
        (True, False)
    """
    return any(bool(value.strip() if isinstance(value, str) else value) for value in map(row.get, PIVOTS))


def count_pivots(rows: Dataset) -> int:
    """Number of rows with an English version.

    Example:
        >>> from datasets import Dataset
        >>> count_pivots(Dataset.from_dict({"instruction_en": ["Hello", ""]}))
        1
    """
    present = [name for name in PIVOTS if name in rows.column_names]
    return sum(map(has_pivot, rows.select_columns(present))) if present else 0


def pair_numbers(rows: Dataset, max_pairs: int | None, seed: int) -> list[int]:
    """Numbers of at most `max_pairs` rows that have an English version, in random order.

    Raises:
        ValueError: there is none.

    Example:
        >>> from datasets import Dataset
        >>> pair_numbers(Dataset.from_dict({"instruction_en": ["Hello", "", None]}), 10, seed=0)
        [0]
    """
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    numbers: list[int] = []
    for index in order:
        if max_pairs is not None and len(numbers) >= max_pairs:
            break
        if has_pivot(rows[index]):
            numbers.append(index)
    if not numbers:
        raise ValueError("instruction_en: expected rows with an English version, got none")
    return numbers


def choose_pairs(rows: Dataset, max_pairs: int | None, seed: int) -> list[dict[str, Any]]:
    """The rows of `pair_numbers`.

    Example:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_dict({"instruction": ["Hallo", "Hello"], "instruction_en": ["Hello", ""]})
        >>> choose_pairs(rows, 10, seed=0)
        [{'instruction': 'Hallo', 'instruction_en': 'Hello'}]
    """
    return [rows[number] for number in pair_numbers(rows, max_pairs, seed)]


def check_rows(
    rows: Sequence[Mapping[str, Any]] | Dataset,
    collator: ParallelCollator,
    answers: bool = True,
    numbers: Sequence[int] | None = None,
    argument: str = "dataset",
    progress: bool = True,
) -> None:
    """Collate every row once, so that a row that cannot be read is found before the work begins, not in its middle.

    Args:
        rows: with the collator's columns.
        collator: that will read them.
        answers: rows of a training; otherwise only their prompts are read.
        numbers: of the rows that will be read; all if None.
        argument: the option that named the rows, for the message.
        progress: show a progress bar.

    Raises:
        ValueError: a row cannot be read; the message names its number, counted from 0, and the column.
    """
    probe = copy.copy(collator)  # what it counts and has warned of is not the training's
    probe.packed, probe.truncated, probe._warned_position = False, 1, True
    collate = probe if answers else probe.prompts
    wanted = list(range(len(rows)) if numbers is None else numbers)
    with tqdm(total=len(wanted), desc="check rows", unit="row", leave=False, disable=not progress) as bar:
        for start in range(0, len(wanted), 64):
            chosen = wanted[start : start + 64]
            try:
                collate([rows[number] for number in chosen])
            except (ValueError, TypeError):
                for number in chosen:
                    _check_row(rows[number], collate, f"{argument}: row {number} (counted from 0)")
                raise
            bar.update(len(chosen))


def _check_row(row: Mapping[str, Any], collate: Any, where: str) -> None:
    try:
        collate([row])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {str(error).removeprefix('row 0: ')}") from error


__all__ = ["check_rows", "choose_pairs", "count_pivots", "has_pivot", "pair_numbers"]
