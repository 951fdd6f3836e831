"""The rooms of `benchmarks` import one way, its top holds the commands, and a kind of record is one file."""

from __future__ import annotations

import ast

import pytest

from benchmarks.measure.record import ROOT
from benchmarks.show.kinds import KINDS

TOP = ROOT / "benchmarks"
COMMANDS = {"profile_fusion", "fit_matrix", "train_run", "host_time", "tune", "gpu", "report", "document"}
# From above to below; rooms on one floor are apart from each other, but for the suites, which time the cases of `ops`.
FLOORS = (("jobs",), ("suites",), ("profile", "show", "ops"), ("baselines", "candidates"), ("measure",))
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS, 1) for room in rooms}


def imported_rooms(path):
    """Rooms and commands of `benchmarks` that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            within = [f"{node.module}.{alias.name}" for alias in node.names]
            names = within if node.module == "benchmarks" else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("benchmarks."))


def test_the_top_holds_the_commands():
    assert {path.stem for path in TOP.glob("*.py")} - {"__init__"} == COMMANDS
    rooms = {path.name for path in TOP.iterdir() if (path / "__init__.py").is_file()}
    assert rooms == set(FLOOR_OF)


@pytest.mark.parametrize("room", FLOOR_OF)
def test_imports_go_down(room):
    for path in (TOP / room).rglob("*.py"):
        for other in imported_rooms(path):
            assert other == room or FLOOR_OF.get(other, 0) > FLOOR_OF[room], f"{path.relative_to(ROOT)} imports {other}"


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
