"""The plan of the house: imports go one way, rooms are where they belong, files and functions stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from structure import PACKAGES, imports_of, modules_of, room_of, walk

ROOT = Path(__file__).parents[1]
# From above to below. A room may import what stands on a floor below it; on its own floor, what stands to its right.
FLOORS = {
    "cc_kernels": (
        ("aot",),
        ("__init__",),
        ("ops",),
        ("op",),
        ("reference",),
        ("functions",),
        ("library", "backend"),
        ("launch", "checks"),
    ),
    "cc_model": (
        ("integrations",),
        ("__init__",),
        ("matrix", "report", "loading"),
        ("patching",),
        ("forward",),
        ("generation", "fast_paths", "saving", "scoring", "connection"),
        ("testing", "data", "distributed"),
        ("specs", "config", "compat"),
        ("files",),
    ),
    "train": (
        ("demo", "distil", "sft", "fit_transform", "generate", "evaluate", "smollm2"),
        ("experiment", "evaluation", "distillation", "data"),
        ("common",),
        ("__init__",),
    ),
    "benchmarks": (
        ("document", "families", "gpu", "report", "fit_matrix", "host_time", "serve", "tune"),
        ("jobs",),
        ("profile_fusion", "train_run"),
        ("suites",),
        ("profile", "show", "ops"),
        ("baselines", "candidates"),
        ("measure",),
        ("__init__",),
    ),
}
BELOW = {"cc_kernels": set(), "cc_model": {"cc_kernels"}, "train": {"cc_kernels", "cc_model"}}
BELOW["benchmarks"] = {*BELOW["train"], "train"}
MODULES = {package: modules_of(ROOT, package) for package in PACKAGES}
FILES = [path for modules in MODULES.values() for path in modules.values()]


def place(package: str, room: str) -> tuple[int, int]:
    for floor, rooms in enumerate(FLOORS[package]):
        if room in rooms:
            return floor, rooms.index(room)
    raise AssertionError(f"{package}.{room} has no floor; give it one in tests/test_structure.py")


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_down(package):
    known = set().union(*MODULES.values())
    for name, path in MODULES[package].items():
        here = room_of(name)
        for other in imports_of(path, known):
            owner, there = other.split(".")[0], room_of(other)
            if owner != package:
                assert owner in BELOW[package], f"{name} imports {other}"
            elif there != here and there != "__init__":
                assert place(package, there) > place(package, here), f"{name} imports {other}, which stands above it"
            elif there == "__init__" != here:
                assert place(package, here) < place(package, there), f"{name} imports its package, which imports it"


def test_an_upward_import_is_seen(tmp_path):
    """The test above would fail for one: the reader of imports finds them wherever they stand."""
    source = tmp_path / "low.py"
    source.write_text("def late():\n    from cc_model.matrix import fit\n    import cc_model.report\n")
    assert imports_of(source, {"cc_model.matrix.fit", "cc_model.report"}) == {"cc_model.matrix.fit", "cc_model.report"}


def test_the_tops_are_small():
    """What stands at the top of a package is what its users import, or its commands."""
    tops = {package: {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"} for package in PACKAGES}
    assert len(tops["cc_model"]) < 14
    assert {"config", "report", "scoring", "testing", "compat"} <= tops["cc_model"]  # public import paths
    assert tops["train"] == {"sft", "distil", "fit_transform", "generate", "evaluate", "smollm2"}
    measuring = {"profile_fusion", "fit_matrix", "train_run", "host_time", "serve", "tune", "gpu"}
    assert tops["benchmarks"] == {*measuring, "report", "document", "families"}


def test_packages_re_export_nothing_twice():
    """`cc_kernels.ops.swiglu` is the module; rooms say in their docstring what they are, and no more."""
    assert (ROOT / "cc_kernels/ops/__init__.py").read_text(encoding="utf-8").count("import") == 0
    for room in ("patching", "forward", "connection", "fast_paths", "matrix", "data"):
        tree = ast.parse((ROOT / "cc_model" / room / "__init__.py").read_text(encoding="utf-8"))
        assert [type(node) for node in tree.body] == [ast.Expr], f"cc_model/{room}/__init__.py"
    assert len(list((ROOT / "cc_kernels/ops/decision").glob("[a-z]*.py"))) == 4


def test_a_forward_stays_in_few_rooms():
    """Rooms entered, and changes of room; `python tests/structure.py` prints them."""
    (rooms, _, changes, _), (rooms_of_generate, _, changes_of_generate, _) = walk(ROOT).values()
    assert rooms <= 7
    assert changes < 35
    assert rooms_of_generate <= 8
    assert changes_of_generate < 55


def test_test_files_stay_small():
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in (ROOT / "tests").rglob("*.py")}
    assert not {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > 300}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = [
                part for part in node.body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ]
            first = min([part.lineno for part in body], default=node.lineno)
            assert (node.end_lineno or 0) - first < 60, f"{node.name} has {(node.end_lineno or 0) - first + 1} lines"
