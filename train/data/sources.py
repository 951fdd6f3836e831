"""Where rows come from: a file, a folder, the hub, or what is built here.

A further data set that is built here is a module with its rows and a line in `BUILT`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset, load_from_disk

from cc_model.data.encoding import check_unicode
from train.common.arguments import DataArguments
from train.common.files import PARQUET, SUFFIXES, Record, read_records

CHATS = ("messages", "messages_en")
ROLE = ("role", "content")


def _cldr(options: DataArguments) -> DatasetDict:
    from train.data.cldr import LANGUAGES, RELATIONS, build_dataset  # needs Babel

    return build_dataset(options.languages or LANGUAGES, options.relations or RELATIONS, options.held_out)


def _udhr(options: DataArguments) -> DatasetDict:
    from train.data.udhr import LANGUAGES, build_rows

    splits = build_rows(options.languages or LANGUAGES, options.held_out)
    return DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()})


BUILT: dict[str, Callable[[DataArguments], DatasetDict]] = {"cldr": _cldr, "udhr": _udhr}


def load_rows(options: DataArguments, split: str | None = None, answers: bool = True) -> Dataset:
    """The rows of a split, with the column names of `cc_model.data.collator.ParallelCollator`.

    Args:
        options: source, columns, and how many rows.
        split: instead of the options'.
        answers: whether the column of the answer is read.

    Raises:
        ValueError: the source or the split does not exist, it cannot be read, or a column is missing; the message names
            the row, or the line of a file.

    Example:
        >>> rows = load_rows(DataArguments(dataset="cldr", languages=["en", "de"], relations=["currency"]))
        >>> rows[0]["output"]
        'Euro'
    """
    split = split or options.split
    if options.dataset is None:
        raise ValueError(f"dataset: expected --dataset, a file, folder, hub name, {' or '.join(BUILT)}; got none")
    if options.max_samples is not None and options.max_samples < 1:
        raise ValueError(f"max_samples: expected a positive number, got {options.max_samples}")
    rows = _read(options, split, answers)
    if options.max_samples is not None:
        rows = rows.select(range(min(options.max_samples, len(rows))))
    if len(rows) == 0:
        raise ValueError(f"dataset: expected rows in {options.dataset!r}, split {split!r}, got none")
    return _rename(rows, options, answers)


def _read(options: DataArguments, split: str, answers: bool) -> Dataset:
    assert options.dataset is not None
    parts = options.dataset.split("+")
    if all(part in BUILT for part in parts):
        return concatenate_datasets([_split(BUILT[part](options), split, part) for part in parts])
    path = Path(options.dataset).expanduser()
    if path.is_dir():
        return _read_folder(path, split, options, answers)
    if path.is_file() or path.suffix.lower() in SUFFIXES or path.is_absolute():
        return _read_file(path, options, answers)
    try:
        return load_dataset(options.dataset, options.dataset_config, split=split)
    except Exception as error:  # the hub client raises errors of many libraries
        raise ValueError(
            f"dataset: {options.dataset!r} is no local file or folder, and split {split!r} could not be loaded from "
            f"the hub: {error}"
        ) from error


def _read_folder(path: Path, split: str, options: DataArguments, answers: bool) -> Dataset:
    for suffix in SUFFIXES:
        if (path / f"{split}{suffix}").is_file():
            return _read_file(path / f"{split}{suffix}", options, answers)
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        saved = load_from_disk(str(path))
        return _split(saved, split, str(path)) if isinstance(saved, DatasetDict) else saved
    raise ValueError(f"dataset: expected {split}.jsonl or {split}.parquet in {path}, found neither")


def _read_file(path: Path, options: DataArguments, answers: bool) -> Dataset:
    if path.suffix.lower() in PARQUET and path.is_file():  # typed, and not read into memory
        return load_dataset("parquet", data_files=str(path), split="train")
    records = read_records(path, "dataset")[: options.max_samples]
    texts = _columns(options, answers).values()
    present = list(dict.fromkeys(column for record in records for column in record.row))
    if records:
        _check_columns(present, options, answers)
    columns = {}
    for column in (column for column in present if column in (*texts, *CHATS)):
        chat = column in CHATS
        for number, record in enumerate(records):
            where = f"dataset: row {number} (counted from 0; {record.where} of {path.name}): column {column!r}"
            _check_value(record, column, chat, where)
        values = [record.row.get(column) for record in records]
        try:
            columns[column] = pyarrow.array(values, None if chat else pyarrow.string())
        except pyarrow.ArrowException as error:  # turns with further entries, of different types
            raise ValueError(f"dataset: column {column!r} of {path}: {error}") from error
    return Dataset(pyarrow.table(columns))


def _check_value(record: Record, column: str, chat: bool, where: str) -> None:
    """Raise for what no column of a data set can hold; that a text is missing is for the collator to say."""
    value = record.row.get(column)
    if value is None:
        return
    if not chat:
        if not isinstance(value, str):
            raise ValueError(f"{where} must be text, got {type(value).__name__} {value!r:.40}")
        check_unicode(value, where)
        return
    if not _is_chat(value):
        raise ValueError(f"{where} must be a list of messages with text 'role' and 'content', got {value!r:.80}")
    check_unicode(json.dumps(value, ensure_ascii=False), where)


def _is_chat(value: Any) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    return all(isinstance(turn, Mapping) and all(isinstance(turn.get(key), str) for key in ROLE) for turn in value)


def _split(splits: DatasetDict, split: str, source: str) -> Dataset:
    if split not in splits:
        raise ValueError(f"split: expected one of {', '.join(splits)} in {source}, got {split!r}")
    return splits[split]


def _columns(options: DataArguments, answers: bool) -> dict[str, str]:
    """The column of each text, by the collator's names."""
    given = {"instruction": options.instruction_column, "instruction_en": options.instruction_en_column}
    return given | ({"output": options.output_column} if answers else {})


def _check_columns(present: Sequence[str], options: DataArguments, answers: bool) -> None:
    """Raise where a text that every row has is missing; `present` are all columns that there are."""
    for name, column in _columns(options, answers).items():
        if not {column, "messages"} & set(present) and name != "instruction_en":
            raise ValueError(
                f"{name}_column: expected a column {column!r} (or chat data in 'messages'), got {list(present)}"
            )


def _rename(rows: Dataset, options: DataArguments, answers: bool) -> Dataset:
    if "messages" in rows.column_names:
        return rows
    _check_columns(rows.column_names, options, answers)
    given = _columns(options, answers)
    used = {column: name for name, column in given.items() if column in rows.column_names}
    if len(used) < sum(column in rows.column_names for column in given.values()):
        raise ValueError(f"instruction_column: expected a column of its own for each text, got {given}")
    rows = rows.remove_columns([name for name in given if name in rows.column_names and name not in used])
    return rows.rename_columns({column: name for column, name in used.items() if column != name})


__all__ = ["BUILT", "load_rows"]
