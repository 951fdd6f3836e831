"""Rows for training and fitting, from files, the hub, or the texts that come with this package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset, load_from_disk

from train.common.arguments import DataArguments
from train.data import LANGUAGES, RELATIONS, build_dataset
from train.data.udhr import build_rows as build_udhr

READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
PIVOTS = ("instruction_en", "messages_en")


def load_rows(options: DataArguments, split: str | None = None) -> Dataset:
    """The rows of a split, with the column names of `cc_model.data.collator.ParallelCollator`.

    Raises:
        ValueError: the source or the split does not exist, or a column is missing.

    Example:
        >>> rows = load_rows(DataArguments(dataset="cldr", languages=["en", "de"], relations=["currency"]))
        >>> rows[0]["output"]
        'Euro'
    """
    split = split or options.split
    if options.dataset is None:
        raise ValueError("dataset: expected --dataset, a file, folder, hub name, 'cldr' or 'udhr'; got none")
    if options.dataset == "cldr+udhr":
        rows = concatenate_datasets([_read(replace(options, dataset=name), split) for name in ("cldr", "udhr")])
    else:
        rows = _read(options, split)
    if options.max_samples is not None:
        if options.max_samples < 1:
            raise ValueError(f"max_samples: expected a positive number, got {options.max_samples}")
        rows = rows.select(range(min(options.max_samples, len(rows))))
    if len(rows) == 0:
        raise ValueError(f"dataset: expected rows in {options.dataset!r}, split {split!r}, got none")
    return _rename(rows, options)


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
        >>> count_pivots(Dataset.from_dict({"instruction_en": ["Hello", ""]}))
        1
    """
    present = [name for name in PIVOTS if name in rows.column_names]
    return sum(map(has_pivot, rows.select_columns(present))) if present else 0


def choose_pairs(rows: Dataset, max_pairs: int | None, seed: int) -> list[dict[str, Any]]:
    """At most `max_pairs` rows that have an English version, in random order.

    Raises:
        ValueError: there is none.

    Example:
        >>> rows = Dataset.from_dict({"instruction": ["Hallo", "Hello"], "instruction_en": ["Hello", ""]})
        >>> choose_pairs(rows, 10, seed=0)
        [{'instruction': 'Hallo', 'instruction_en': 'Hello'}]
    """
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    pairs: list[dict[str, Any]] = []
    for index in order:
        if max_pairs is not None and len(pairs) >= max_pairs:
            break
        row = rows[index]
        if has_pivot(row):
            pairs.append(row)
    if not pairs:
        raise ValueError("instruction_en: expected rows with an English version, got none")
    return pairs


def _read(options: DataArguments, split: str) -> Dataset:
    assert options.dataset is not None
    if options.dataset == "cldr":
        splits = build_dataset(options.languages or LANGUAGES, options.relations or RELATIONS, options.held_out)
        return _split(splits, split, "cldr")
    if options.dataset == "udhr":
        texts = build_udhr(options.languages or LANGUAGES, options.held_out)
        return _split(DatasetDict({name: Dataset.from_list(rows) for name, rows in texts.items()}), split, "udhr")
    path = Path(options.dataset).expanduser()
    if path.is_dir():
        return _read_folder(path, split)
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise ValueError(f"dataset: expected a file of type {', '.join(READERS)}, got {path.name!r}")
        return load_dataset(READERS[path.suffix.lower()], data_files=str(path), split="train")
    if path.suffix.lower() in READERS or path.is_absolute():
        raise ValueError(f"dataset: found no file {options.dataset!r}")
    try:
        return load_dataset(options.dataset, options.dataset_config, split=split)
    except Exception as error:  # the hub client raises errors of many libraries
        raise ValueError(
            f"dataset: {options.dataset!r} is no local file or folder, and split {split!r} could not be loaded from "
            f"the hub: {error}"
        ) from error


def _read_folder(path: Path, split: str) -> Dataset:
    for suffix, reader in READERS.items():
        file = path / f"{split}{suffix}"
        if file.is_file():
            return load_dataset(reader, data_files=str(file), split="train")
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        saved = load_from_disk(str(path))
        return _split(saved, split, str(path)) if isinstance(saved, DatasetDict) else saved
    raise ValueError(f"dataset: expected {split}.jsonl or {split}.parquet in {path}, found neither")


def _split(splits: DatasetDict, split: str, source: str) -> Dataset:
    if split not in splits:
        raise ValueError(f"split: expected one of {', '.join(splits)} in {source}, got {split!r}")
    return splits[split]


def _rename(rows: Dataset, options: DataArguments) -> Dataset:
    if "messages" in rows.column_names:
        return rows
    given = {
        "instruction": options.instruction_column,
        "instruction_en": options.instruction_en_column,
        "output": options.output_column,
    }
    for name, column in given.items():
        if column not in rows.column_names and name != "instruction_en":
            raise ValueError(
                f"{name}_column: expected a column {column!r} (or chat data in 'messages'), got {rows.column_names}"
            )
        if column != name and column in rows.column_names:
            rows = rows.remove_columns(name) if name in rows.column_names else rows
            rows = rows.rename_column(column, name)
    return rows


__all__ = ["choose_pairs", "count_pivots", "has_pivot", "load_rows"]
