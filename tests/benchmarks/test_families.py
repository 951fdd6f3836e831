"""The table of docs/models.md is the one that the installed transformers gives."""

import pytest
import transformers

from benchmarks.families import DOCUMENT, END, START, minor, table, written


def test_the_document_has_the_generated_table():
    text = DOCUMENT.read_text(encoding="utf-8")
    version = minor(transformers.__version__)
    if f"Made with transformers {version}." not in text:
        pytest.skip(f"the table was made with another transformers than {version}")
    assert table() in text, "run python -m benchmarks.families"


def test_a_document_without_marks_is_refused():
    assert written(f"a\n{START}\nold\n{END}\nb", "new") == f"a\n{START}\nnew\n{END}\nb"
    with pytest.raises(ValueError, match=r"document: expected the marks"):
        written("a", "new")
