"""Rows and questions of an experiment: built from CLDR, or read from files that were prepared where CLDR is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cc_model.files import write_text
from train.experiment.settings import Settings

ROWS, SPLITS = "rows.jsonl", "held_out.json"
Row = dict[str, str]


@dataclass(frozen=True)
class Data:
    """`train` rows; `questions`: held-out rows that `train` could answer; `pairs`: train rows with a pivot."""

    train: list[Row]
    questions: list[Row]
    pairs: list[Row]


def load(settings: Settings, seed: int) -> Data:
    """The rows of one seed, the same for every condition.

    A question is a held-out row (its fact is trained on in English, not in its language) whose answer occurs in
    training in that language: the others nobody could answer without knowing the language from elsewhere.

    Raises:
        ValueError: no prepared files in `settings.data`, or they lack the seed; or no question is left.
    """
    splits = _read(Path(settings.data), seed) if settings.data else _build(settings, seed)
    train, held_out = splits["train"], splits["held_out"]
    seen = {(row["language"], row["output"]) for row in train}
    questions = [row for row in held_out if (row["language"], row["output"]) in seen]
    if not questions:
        raise ValueError("held_out: expected held-out questions besides English, got none")
    order = torch.randperm(len(questions), generator=torch.Generator().manual_seed(seed)).tolist()
    pairs = [row for row in train if row["instruction_en"]]
    shuffled = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = sorted(order[: settings.questions])
    return Data(train, [questions[index] for index in chosen], [pairs[index] for index in shuffled])


def prepare(settings: Settings, folder: str | Path) -> list[Path]:
    """Write all rows, and which of them each seed holds out, for a machine without CLDR; returns the files."""
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    held_out: dict[str, list[int]] = {}
    for seed in settings.seeds:
        splits = _build(settings, seed)
        rows = rows or sorted(splits["train"] + splits["held_out"], key=_key)
        unseen = set(map(_key, splits["held_out"]))
        held_out[str(seed)] = [index for index, row in enumerate(rows) if _key(row) in unseen]
    write_text(root / ROWS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
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
    for index, line in enumerate((folder / ROWS).read_text(encoding="utf-8").splitlines()):
        splits["held_out" if index in unseen else "train"].append(json.loads(line))
    return splits


__all__ = ["Data", "load", "prepare"]
