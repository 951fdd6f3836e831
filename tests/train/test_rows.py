"""Rows from files, folders and saved data sets, and the choice of prompt pairs."""

import json

import pytest
from datasets import Dataset, DatasetDict

from train.common.arguments import DataArguments
from train.common.rows import choose_pairs, count_pivots
from train.data.sources import load_rows

ROWS = [
    {"instruction": "Hallo", "instruction_en": "Hello", "output": "Welt"},
    {"instruction": "Hi", "instruction_en": None, "output": "world"},
]


def write(path, rows=ROWS):
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_files_and_folders(tmp_path, suffix):
    file = write(tmp_path / f"train{suffix}")
    for dataset in (file, str(tmp_path)):
        rows = load_rows(DataArguments(dataset=dataset))
        assert [dict(row) for row in rows] == ROWS
        assert count_pivots(rows) == 1


def test_saved_data_sets(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    DatasetDict({"held_out": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "splits")
    assert len(load_rows(DataArguments(dataset=str(tmp_path / "one")))) == 2
    assert len(load_rows(DataArguments(dataset=str(tmp_path / "splits"), split="held_out"))) == 2
    with pytest.raises(ValueError, match=r"split: expected one of held_out in .*, got 'train'"):
        load_rows(DataArguments(dataset=str(tmp_path / "splits")))


def test_columns_are_renamed(tmp_path):
    rows = [{"inputs": "Hallo", "english": "Hello", "targets": "Welt", "output": "not this"}]
    options = DataArguments(
        dataset=write(tmp_path / "rows.jsonl", rows),
        instruction_column="inputs",
        instruction_en_column="english",
        output_column="targets",
    )
    assert load_rows(options)[0] == ROWS[0]


def test_what_is_refused(tmp_path):
    (tmp_path / "rows.txt").write_text("Hallo")
    (tmp_path / "empty").mkdir()
    for dataset, message in (
        (str(tmp_path / "rows.txt"), "dataset: expected a file of type .json, .jsonl, .parquet, .csv, got 'rows.txt'"),
        (str(tmp_path / "empty"), "dataset: expected train.jsonl or train.parquet in"),
        (str(tmp_path / "none"), "dataset: found no file"),
    ):
        with pytest.raises(ValueError, match=message):
            load_rows(DataArguments(dataset=dataset))


def test_cldr_subset():
    rows = load_rows(DataArguments(dataset="cldr", languages=["en", "ja"], relations=["currency"], max_samples=7))
    assert len(rows) == 7
    assert set(rows["relation"]) == {"currency"}


def test_choose_pairs():
    rows = Dataset.from_list([{**ROWS[0], "instruction": str(n)} for n in range(20)] + ROWS[1:])
    first, again, other = (choose_pairs(rows, 5, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == 5
    assert len(choose_pairs(rows, None, 0)) == 20  # the row without an English version is left out
    with pytest.raises(ValueError, match="instruction_en: expected rows with an English version, got none"):
        choose_pairs(Dataset.from_list(ROWS[1:]), 5, 0)
