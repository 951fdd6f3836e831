"""The CLDR questions as data sets, files and a command line, and the names that `train.data` exports."""

import doctest
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import train.data
from train.data import LANGUAGES, build_dataset, build_rows, cldr, write_jsonl

ROOT = Path(train.data.__file__).parents[2]


@pytest.fixture(scope="module")
def splits():
    return build_rows()


def test_dataset_has_the_rows_and_string_columns(splits):
    dataset = build_dataset()
    assert {split: table.to_list() for split, table in dataset.items()} == splits
    english = build_dataset(["en"])
    assert english["held_out"].num_rows == 0
    assert english["train"].features == english["held_out"].features == dataset["train"].features


def test_jsonl_round_trip(splits, tmp_path):
    from datasets import load_dataset

    paths = write_jsonl(tmp_path / "new" / "folder", splits)
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {"train.jsonl", "held_out.jsonl"}
    assert "日元" in paths["train"].read_text(encoding="utf-8"), "not escaped"
    files = {split: str(path) for split, path in paths.items()}
    loaded = load_dataset("json", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert {split: table.to_list() for split, table in loaded.items()} == splits


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    rows = build_rows(["en"], held_out=0)
    path = write_jsonl(tmp_path, rows)["train"]
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_jsonl(tmp_path, {"train": rows["train"][:1]})
    assert path.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"train.jsonl", "held_out.jsonl"}


@pytest.mark.parametrize("below", ["", "deeper"])
def test_directory_that_is_a_file(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="directory: expected a folder"):
        write_jsonl(tmp_path / "file" / below, {"train": []})


def test_command_line_in_another_process_writes_the_same_bytes(splits, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-m", "train.data.cldr", "--out", str(tmp_path / "theirs")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for split, path in write_jsonl(tmp_path / "ours", splits).items():
        assert (tmp_path / "theirs" / path.name).read_bytes() == path.read_bytes()
        assert str(len(splits[split])) in done.stdout
    assert all(re.search(rf"\b{language}\b", done.stdout) for language in LANGUAGES)


def test_command_line_options_and_errors(tmp_path, capsys):
    options = ["--languages", "en", "ja", "--relations", "currency", "--held-out", "0.2", "--seed", "3"]
    cldr.main(["--out", str(tmp_path), *options])
    written = [json.loads(line) for line in (tmp_path / "held_out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert written == build_rows(["en", "ja"], ["currency"], 0.2, 3)["held_out"] != []
    (tmp_path / "file").write_text("")
    for wrong, message in (
        (["--out", str(tmp_path), "--languages", "xx"], "languages: expected one or more of ar,"),
        (["--out", str(tmp_path / "file")], "directory: expected a folder"),
        ([], "--out"),
    ):
        with pytest.raises(SystemExit) as exit_:
            cldr.main(wrong)
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("module", ["data.cldr", "data.facts", "data.questions", "data.sources", "common.tokenizer"])
def test_docstring_examples(module):
    result = doctest.testmod(importlib.import_module(f"train.{module}"), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0


def test_public_names_are_loaded_on_first_use():
    code = "import sys, train.data; print([m for m in ('babel', 'transformers', 'datasets') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(train.data.__all__) <= set(dir(train.data))
    assert all(hasattr(train.data, name) for name in train.data.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = train.data.nothing
