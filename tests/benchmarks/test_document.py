"""The numbers in the documents are those of the committed records."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks import document
from benchmarks.document import DOCUMENTS, NOT_MEASURED, PICTURES, SHOWN, filled, main
from benchmarks.measure.record import ROOT
from benchmarks.show.library import CHANGED, Library

FIT = {
    "kind": "fit_matrix",
    "facts": {"device": "a CPU", "commit": "abc"},
    "arguments": {"model": "tiny"},
    "rows": [{"pairs": 10, "method": "streaming", "seconds": 1.0, "bytes": 2**20}],
}
# A number with a unit of a measurement. Outside of generated places none may stand, but for a rule and data sheets.
UNITS = "µs|ms|MiB|GiB|GB/s|TB/s|tokens/s|×|times (?:as|the|a)\\b|% (?:slower|faster|of (?:a|the|its)\\b)"
MEASURED = re.compile(rf"\d[\d,.]* ?(?:{UNITS})")
ALLOWED = re.compile(r"vendor|\bSXM\b|2×-error rule")
GENERATED = re.compile(r"<!-- (?:newest|show|record|arithmetic)\b.*?<!-- end -->", re.DOTALL)


@pytest.fixture(scope="module")
def library():
    return Library()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_what_is_generated_is_what_the_records_say(path, library):
    text = path.read_text(encoding="utf-8")
    assert re.search("<!-- (newest|show): ", text)
    assert filled(text, library) == text, "run python -m benchmarks.document"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_number_was_typed(path):
    text = GENERATED.sub("", path.read_text(encoding="utf-8"))
    typed = [line for line in text.splitlines() if MEASURED.search(line) and not ALLOWED.search(line)]
    assert typed == []


def test_the_documents_are_the_four():
    assert [str(path.relative_to(ROOT)) for path in DOCUMENTS] == [
        *("README.md", "docs/kernels.md", "docs/serving.md", "docs/benchmarks.md")
    ]


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_of_the_newest_record(name, library):
    pytest.importorskip("matplotlib")
    found = document.picture_of(name, library)
    assert found is not None
    assert document.drawn_of(ROOT / name) == found[1], "run python -m benchmarks.document"


def test_a_picture_is_drawn_once(tmp_path, library):
    pytest.importorskip("matplotlib")
    assert len(document.draw(library, tmp_path)) == len(PICTURES)
    assert document.draw(library, tmp_path) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_name_programs_that_exist(path):
    text = path.read_text(encoding="utf-8")
    modules = set(re.findall(r"python -m (benchmarks\.\w+)", text))
    assert modules
    for module in modules:
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module


@pytest.fixture
def small(tmp_path):
    """A library of one record."""
    (tmp_path / "fit.json").write_text(json.dumps(FIT))
    return Library(tmp_path)


def test_a_table_is_filled_in(small, tmp_path):
    text = "Before\n<!-- record: fit.json -->\nold\n<!-- end -->\nAfter\n"
    once = filled(text, small, tmp_path)
    assert "| 10 | 1.00 | 1.0 | – | – | – |\n<!-- end -->\nAfter" in once
    assert "old" not in once
    assert filled(once, small, tmp_path) == once
    assert filled(text.replace("fit.json", "fit.json 1"), small, tmp_path).count("| 10 |") == 1


def test_the_newest_table_says_of_which_record_it_is(small, tmp_path):
    place = "<!-- newest: fit_matrix fit cpu {} -->\n<!-- end -->\n"
    text = filled(place.format("tiny,"), small, tmp_path)
    assert "| 10 | 1.00 |" in text
    assert f"Record `fit`, abc{CHANGED} ()" in text
    assert NOT_MEASURED in filled(place.format("tiny,; a GPU"), small, tmp_path)
    assert NOT_MEASURED in filled(place.format("tiny,").replace("cpu", "gpu"), small, tmp_path)


@pytest.mark.parametrize("name", SHOWN)
def test_what_can_be_shown_is_shown_without_records(name, tmp_path):
    text = filled(f"<!-- show: {name} -->\n<!-- end -->\n", Library(tmp_path), tmp_path)
    assert text.count("\n") > 2


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("record: none.json", "record: expected a file, found none at none.json"),
        ("record: fit.json 2", "record: expected a table from 1 to 1 of fit.json, got 2"),
        ("record: other.json", "record: expected a record of a kind of profile_fusion, train_run, .* in other.json"),
        ("show: losses", "show: expected one of goals, missed, headlines, jobs, floors, got 'losses'"),
        ("newest: fits fit cpu", "newest: expected KIND PART cpu.gpu WORDS with a kind of profile_fusion"),
        ("newest: fit_matrix fit tpu", "newest: expected KIND PART cpu.gpu WORDS"),
        ("newest: fit_matrix", "newest: expected KIND PART cpu.gpu WORDS"),
    ],
)
def test_what_cannot_be_filled_in_is_refused(small, tmp_path, place, message):
    (tmp_path / "other.json").write_text('{"kind": "unheard"}')
    with pytest.raises(ValueError, match=message):
        filled(f"<!-- {place} -->\n<!-- end -->\n", small, tmp_path)


def test_a_document_is_rewritten_once(tmp_path, capsys):
    path = tmp_path / "page.md"
    path.write_text("<!-- record: benchmarks/results/cpu-fit.json -->\n<!-- end -->\n")
    assert main([str(path)]) == 0
    assert main([str(path)]) == 0
    assert [line.rsplit(" ", 1)[1] for line in capsys.readouterr().out.splitlines()] == ["changed", "unchanged"]
    assert "Matrix fit, tiny" in path.read_text()


def test_a_document_that_asks_for_nothing_there_is_named(tmp_path, capsys):
    path = tmp_path / "page.md"
    path.write_text("<!-- show: losses -->\n<!-- end -->\n")
    with pytest.raises(SystemExit):
        main([str(path)])
    assert "page.md: show: expected one of" in capsys.readouterr().err


def test_a_document_that_is_not_there_is_named(tmp_path, capsys):
    (tmp_path / "there.md").write_text("text")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "there.md"), "nothere.md"])
    shown = capsys.readouterr()
    assert "error: FILE: expected a document, found no file nothere.md" in shown.err
    assert shown.out == ""  # nothing was rewritten before
