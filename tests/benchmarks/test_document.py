"""The tables in the documents are those of the committed records."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks.document import DOCUMENTS, filled, main
from benchmarks.measure.record import ROOT

FIT = {
    "kind": "fit_matrix",
    "facts": {"device": "a CPU"},
    "arguments": {"model": "tiny"},
    "rows": [{"pairs": 10, "method": "streaming", "seconds": 1.0, "bytes": 2**20}],
}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_number_was_typed(path):
    text = path.read_text(encoding="utf-8")
    assert "<!-- record: " in text
    assert filled(text) == text, "run python -m benchmarks.document"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_name_programs_that_exist(path):
    text = path.read_text(encoding="utf-8")
    modules = set(re.findall(r"python -m (benchmarks\.\w+)", text))
    assert modules
    for module in modules:
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module


def test_a_table_is_filled_in(tmp_path):
    (tmp_path / "fit.json").write_text(json.dumps(FIT))
    text = "Before\n<!-- record: fit.json -->\nold\n<!-- end -->\nAfter\n"
    once = filled(text, tmp_path)
    assert "| 10 | 1.00 | 1.0 | – | – | – |\n<!-- end -->\nAfter" in once
    assert "old" not in once
    assert filled(once, tmp_path) == once
    assert filled(text.replace("fit.json", "fit.json 1"), tmp_path).count("| 10 |") == 1


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("none.json", "record: expected a file, found none at none.json"),
        ("fit.json 2", "record: expected a table from 1 to 1 of fit.json, got 2"),
        ("other.json", "record: expected a kind of profile_fusion, train_run, fit_matrix, versions, got 'unheard'"),
    ],
)
def test_what_cannot_be_filled_in_is_refused(tmp_path, place, message):
    (tmp_path / "fit.json").write_text(json.dumps(FIT))
    (tmp_path / "other.json").write_text('{"kind": "unheard"}')
    with pytest.raises(ValueError, match=message):
        filled(f"<!-- record: {place} -->\n<!-- end -->\n", tmp_path)


def test_a_document_is_rewritten_once(tmp_path, capsys):
    path = tmp_path / "page.md"
    path.write_text("<!-- record: benchmarks/results/cpu-fit.json -->\n<!-- end -->\n")
    assert main([str(path)]) == 0
    assert main([str(path)]) == 0
    assert [line.rsplit(" ", 1)[1] for line in capsys.readouterr().out.splitlines()] == ["changed", "unchanged"]
    assert "Matrix fit, tiny" in path.read_text()
