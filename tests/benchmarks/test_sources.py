"""Which code a number is of: moving code does not make a measurement old, changing it does."""

from __future__ import annotations

import pytest

from benchmarks.measure import sources
from benchmarks.measure.sources import SOURCES, content, definitions, files_of

CODE = '''"""A module."""
import os

SIZE = 4


def grow(x, *, by=2):
    """Grow."""
    return f"{x}{by}"  # a comment


class Box:
    """A box."""

    depth: int = 1
'''


@pytest.fixture
def part(tmp_path, monkeypatch):
    """A part `p` of all files in `code`, and one that is `grow` alone; a function that writes a file and asks anew."""
    monkeypatch.setattr(sources, "SOURCES", {"p": ("code/*.py",), "one": ("code/a.py::grow",)})
    (tmp_path / "code").mkdir()

    def write(part="p", **files):
        for name, text in files.items():
            (tmp_path / "code" / f"{name}.py").write_text(text)
        sources._content.cache_clear()
        return content(part, tmp_path)

    return write


@pytest.mark.parametrize("name", SOURCES)
def test_every_part_has_files(name):
    assert files_of(name)
    assert len(content(name)) == 16


def test_ops_do_not_depend_on_each_other():
    digests = {content(op) for op in ("swiglu", "capture_rows", "connect", "transform_rows", "gate_up_swiglu")}
    assert len(digests) == 5


@pytest.mark.parametrize(
    "changed",
    [
        CODE.replace('"""A module."""\n', ""),
        CODE.replace("import os", "import sys\nfrom pathlib import Path"),
        CODE.replace("  # a comment", ""),
        CODE.replace('    """Grow."""\n', '    """Grow more."""\n'),
        CODE + '\n__all__ = ["Box"]\n',
        CODE.replace("x, *, by=2", "x,\n    *,\n    by=2,\n"),
    ],
    ids=["docstring", "imports", "comment", "inner docstring", "all", "layout"],
)
def test_what_does_not_run_does_not_count(part, changed):
    assert part(a=CODE) == part(a=changed)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SIZE = 4", "SIZE = 4.0"),
        ("by=2", "by=3"),
        ("*, by", "by"),
        ("{x}{by}", "{x} {by}"),
        ("depth: int = 1", "depth: int"),
    ],
)
def test_what_runs_counts(part, old, new):
    assert part(a=CODE) != part(a=CODE.replace(old, new))


def test_moving_code_to_another_file_does_not_count(part):
    before = part(a=CODE)
    head, tail = CODE.split("class Box:")
    assert part(a=head, b="'''Boxes.'''\nclass Box:" + tail) == before
    assert part(a=head, b="") != before


def test_one_definition_of_a_file(part):
    before = part("one", a=CODE)
    assert part("one", a=CODE.replace("SIZE = 4", "SIZE = 5")) == before
    assert part("one", a=CODE.replace("by=2", "by=5")) != before


@pytest.mark.parametrize(
    ("files", "asked", "message"),
    [
        ({"a": CODE}, "q", "part: expected one of p, one, got 'q'"),
        ({}, "p", "sources of p: expected files at code/.*, found none"),
        ({"a": "x = 1"}, "one", "sources of one: expected a definition of grow in code/a.py"),
    ],
)
def test_what_is_missing_is_named(part, files, asked, message):
    with pytest.raises(ValueError, match=message):
        part(asked, **files)


def test_a_named_assignment_is_a_definition():
    assert len(list(definitions("A = 1\nB: int = 2\nC = 3", "B"))) == 1
