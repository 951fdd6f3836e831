"""Rows and questions of an experiment: built from CLDR, or read from files that were prepared where CLDR is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cc_model.files import write_text
from train.common.files import json_lines, output_folder, read_records
from train.experiment.settings import Settings

ROWS, SPLITS = "rows.jsonl", "held_out.json"
Row = dict[str, str]


@dataclass(frozen=True)
class Data:
    """The rows of one seed.

    Args:
        train: what is trained on.
        questions: held-out rows that `train` could answer; these are asked.
        pairs: rows of `train` with an English version, in random order.
        known: the facts of `questions` in English, as they stand in `train`.
        held_out: number of all held-out rows.
        halves: for each question the half of its fact, A or B.
        prompts: all held-out rows of half A. Students read the prompts, teachers the English ones as well.
    """

    train: list[Row]
    questions: list[Row]
    pairs: list[Row]
    known: list[Row]
    held_out: int
    halves: str
    prompts: list[Row]


def load(settings: Settings, seed: int) -> Data:
    """The rows of one seed, the same for every condition.

    A question is a held-out row (its fact is trained on in English, not in its language) whose answer occurs in
    training in that language: the others nobody could answer without knowing the language from elsewhere.

    Half of the held-out facts, in all their languages, are half A, drawn with the seed; the others are half B. A fact
    and its mirror are one.

    Raises:
        ValueError: no prepared files in `settings.data`, or they lack the seed; or no question is left.
    """
    splits = _read(Path(settings.data), seed) if settings.data else _build(settings, seed)
    train, held_out = splits["train"], splits["held_out"]
    seen = {(row["language"], row["output"]) for row in train}
    questions = [row for row in held_out if (row["language"], row["output"]) in seen]
    if not questions:
        raise ValueError(
            f"languages: expected held-out questions besides English, got none with {', '.join(settings.languages)}"
        )
    order = torch.randperm(len(questions), generator=torch.Generator().manual_seed(seed)).tolist()
    pairs = [row for row in train if row["instruction_en"]]
    shuffled = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    asked = [questions[index] for index in sorted(order[: settings.questions])]
    facts = {row["fact_id"] for row in asked}
    known = [row for row in train if row["language"] == "en" and row["fact_id"] in facts]
    half = _half_a(held_out, seed)
    halves = "".join("A" if _fact(row) in half else "B" for row in asked)
    prompts = [row for row in held_out if _fact(row) in half]
    return Data(train, asked, [pairs[index] for index in shuffled], known, len(held_out), halves, prompts)


def _half_a(held_out: Iterable[Row], seed: int) -> set[tuple[str, ...]]:
    facts = sorted(set(map(_fact, held_out)))
    order = torch.randperm(len(facts), generator=torch.Generator().manual_seed(seed)).tolist()
    return {facts[index] for index in order[: len(facts) // 2]}


def _fact(row: Mapping[str, str]) -> tuple[str, ...]:
    """What a row and its mirror have in common: currency or language, and the two codes."""
    return row["relation"].split("_")[-1], *sorted((row["subject"], row["object"]))


def prepare(settings: Settings, folder: str | Path) -> list[Path]:
    """Write all rows, and which of them each seed holds out, for a machine without CLDR; returns the files."""
    root = output_folder(folder, "prepare")
    rows: list[Row] = []
    held_out: dict[str, list[int]] = {}
    for seed in settings.seeds:
        splits = _build(settings, seed)
        rows = rows or sorted(splits["train"] + splits["held_out"], key=_key)
        unseen = set(map(_key, splits["held_out"]))
        held_out[str(seed)] = [index for index, row in enumerate(rows) if _key(row) in unseen]
    write_text(root / ROWS, json_lines(rows))
    write_text(root / SPLITS, json.dumps(held_out) + "\n")
    return [root / ROWS, root / SPLITS]


def _key(row: Mapping[str, str]) -> tuple[str, str]:
    return row["language"], row["fact_id"]


def _build(settings: Settings, seed: int) -> dict[str, list[Row]]:
    from train.data import build_rows  # needs babel, which a machine with prepared files may lack

    splits = build_rows(settings.languages, settings.relations, settings.held_out, seed)
    return {name: sorted(rows, key=_key) for name, rows in splits.items()}


def _read(folder: Path, seed: int) -> dict[str, list[Row]]:
    if not ((folder / ROWS).is_file() and (folder / SPLITS).is_file()):
        raise ValueError(f"data: expected {ROWS} and {SPLITS} in {folder}; write them with --prepare {folder}")
    held_out: Mapping[str, Iterable[int]] = json.loads((folder / SPLITS).read_text(encoding="utf-8"))
    if str(seed) not in held_out:
        raise ValueError(f"seeds: expected some of {', '.join(held_out)}, which {folder} has, got {seed}")
    unseen = set(held_out[str(seed)])
    splits: dict[str, list[Any]] = {"train": [], "held_out": []}
    for index, record in enumerate(read_records(folder / ROWS, "data")):
        splits["held_out" if index in unseen else "train"].append(record.row)
    return splits


__all__ = ["Data", "load", "prepare"]
