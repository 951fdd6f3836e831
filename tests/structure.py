"""Measures the structure of the packages from their imports, and which files a forward enters.

    python tests/structure.py              # the checkout that holds this file
    python tests/structure.py --root DIR   # another one, such as an older commit in a worktree

A *floor* is the longest chain of imports below a file, within its package. A *room* is a folder of a package; a file at
its top is a room of its own. An *upward import* is one that the one-way rule forbids (`tests/test_structure.py`).
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

PACKAGES = ("cc_kernels", "cc_model", "train", "benchmarks")


def modules_of(root: Path, package: str) -> dict[str, Path]:
    """The modules of a package by dotted name."""
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, known: set[str]) -> set[str]:
    """The modules among `known` that a file imports, anywhere in it but under `if TYPE_CHECKING`."""
    found: set[str] = set()
    for node in _statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
    return found & known


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING":
            continue
        yield node
        yield from _statements(node)


def floors_of(imports: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each module: 1 for one that imports nothing of its package. A circle counts once."""
    floors: dict[str, int] = {}

    def floor(name: str, above: tuple[str, ...]) -> int:
        if name not in floors:
            below = [floor(other, (*above, name)) for other in imports[name] if other not in (*above, name)]
            floors[name] = 1 + max(below, default=0)
        return floors[name]

    for name in imports:
        floor(name, ())
    return floors


def room_of(module: str) -> str:
    """The folder of a module inside its package; for a file at the top, the file."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def entered(package: Path, run: Callable[[], object]) -> list[Path]:
    """The file of each Python call into `package` that `run` makes, in order."""
    calls: list[Path] = []
    prefix = str(package)

    def follow(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(prefix):
            calls.append(Path(frame.f_code.co_filename))

    sys.setprofile(follow)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


def runs() -> dict[str, Callable[[], object]]:
    """A training forward, and `generate` to the first token, of a tiny model of two layers."""
    import torch

    from cc_model import patch_model
    from cc_model.testing import random_matrix, tiny_model

    model = patch_model(tiny_model("llama", num_hidden_layers=2))
    ids = torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids.where(torch.arange(12) > 7, -100), "pivot_input_ids": ids}
    model.train()
    fitted = patch_model(tiny_model("llama", num_hidden_layers=2))
    fitted.cc.transform_matrix = random_matrix(fitted)
    made = {
        "training forward": lambda: model(**batch, use_cache=False),
        "generate, first token": lambda: fitted.generate(ids, max_new_tokens=1, do_sample=False),
    }
    for run in made.values():  # what happens once is not what a step costs
        run()
    return made


def changes(places: list) -> int:
    """How often the place changes from one call to the next."""
    return sum(a != b for a, b in pairwise(places))


def walk(root: Path) -> dict[str, tuple[int, int, int, int]]:
    """For each of `runs`: rooms and files of cc_model entered, and how often each changes from call to call."""
    result = {}
    for name, run in runs().items():
        files = entered(root / "cc_model", run)
        rooms = [path.relative_to(root / "cc_model").parts[0] for path in files]
        result[name] = (len(set(rooms)), len(set(files)), changes(rooms), changes(files))
    return result


def table(root: Path) -> str:
    """Per package: files at the top, files, lines, floors; then the walks."""
    lines = ["| package | files at the top | files | lines | floors |", "|---|---|---|---|---|"]
    for package in PACKAGES:
        modules = modules_of(root, package)
        imports = {name: imports_of(path, set(modules)) for name, path in modules.items()}
        top = len(list((root / package).glob("*.py")))
        count = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in modules.values())
        lines.append(f"| {package} | {top} | {len(modules)} | {count} | {max(floors_of(imports).values())} |")
    lines += ["", "| walk | rooms | files | changes of room | changes of file |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {' | '.join(map(str, counts))} |" for name, counts in walk(root).items()]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the checkout to measure")
    chosen = parser.parse_args().root.resolve()
    sys.path.insert(0, str(chosen))
    print(table(chosen))
