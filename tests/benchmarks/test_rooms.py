"""A kind of record is one file, and there is one table of tolerances; `tests/test_structure.py` holds the rooms."""

from __future__ import annotations

import ast

from benchmarks.measure.record import ROOT
from benchmarks.show.kinds import KINDS

TOP = ROOT / "benchmarks"


def test_a_kind_is_a_file_of_its_name():
    for name, kind in KINDS.items():
        assert kind.tables.__module__ == kind.numbers.__module__ == f"benchmarks.show.{name}"


def test_tolerances_stand_in_one_table():
    """No other file has a dict of dtypes to numbers."""

    def is_table(node):
        return (
            isinstance(node, ast.Dict)
            and all(key is not None and ast.unparse(key).startswith("torch.") for key in node.keys)
            and all(isinstance(value, ast.Constant) for value in node.values)
            and bool(node.keys)
        )

    trees = {path.name: ast.parse(path.read_text(encoding="utf-8")) for path in TOP.rglob("*.py")}
    assert {name for name, tree in trees.items() if any(map(is_table, ast.walk(tree)))} == {"agreement.py"}
