"""Which code a number is of: a digest of the definitions that it depends on, kept with it in its record.

A record is up to date as long as the digest of its parts is the present one. Comments, docstrings, imports, the order
of definitions and the file that they stand in do not count: moving code does not make a measurement old.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.measure.record import ROOT

# What times a call. `file::name` is one definition of a file.
_ROUNDS = ("benchmarks/measure/interleaved.py",)
_CLOCK = ("benchmarks/measure/timing.py",)
_KERNELS = "cc_kernels/**/*.py"  # without what is only compiled ahead of time
_MODEL = (
    _KERNELS,
    "cc_model/config.py",
    "cc_model/specs.py",
    "cc_model/patching/*.py",
    "cc_model/forward/*.py",
    "cc_model/connection/*.py",
    "cc_model/fast_paths/*.py",
)
_TRAIN = (*_MODEL, *_ROUNDS, "benchmarks/baselines/*.py", "benchmarks/profile/training.py::TrainingStep")
_INFER = (
    *_MODEL,
    *_ROUNDS,
    "cc_model/generation*.py",
    "benchmarks/baselines/*.py",
    "benchmarks/profile/inference.py::Generation",
)
_DECISION = ("cc_kernels/ops/decision/*.py",)
_STREAM = ("cc_kernels/ops/stream_config.py",)


def _op(name: str, *others: str) -> tuple[str, ...]:
    return (f"cc_kernels/ops/{name}.py", f"benchmarks/ops/{name}.py", *_CLOCK, *others)


SOURCES: dict[str, tuple[str, ...]] = {
    "train": _TRAIN,
    "translations": _TRAIN,
    "infer": _INFER,
    "static": _INFER,
    "prefix": _INFER,
    "curve": _INFER,
    "run": (*_MODEL, "benchmarks/train_run.py"),
    "fit": ("cc_model/matrix/*.py", "cc_model/forward/bank.py", "benchmarks/fit_matrix.py"),
    "host": (*_MODEL, "benchmarks/host_time.py", "benchmarks/measure/dry.py"),
    "decoding": (*_MODEL, *_ROUNDS, "cc_model/generation*.py", "benchmarks/measure/decoding.py"),
    "serve": (
        *(*_MODEL, *_ROUNDS, "cc_model/generation*.py", "cc_model/integrations/vllm/*.py"),
        *("benchmarks/serve.py", "benchmarks/measure/models.py"),
    ),
    "golden": (*_MODEL, "cc_model/generation*.py", "cc_model/matrix/*.py", "tests/golden/*.py"),
    "tests": (_KERNELS, "tests/kernels/*.py"),
    "model-tests": (*_MODEL, "tests/model/test_pivot_graph_on_gpu.py", "tests/model/fast_paths/*.py"),
    "experiment": (*_MODEL, "train/experiment/*.py"),
    "tune": ("cc_kernels/ops/**/*.py", "benchmarks/tune.py", *_CLOCK),
    "swiglu": _op("swiglu"),
    "geglu": _op("geglu", "cc_kernels/ops/swiglu.py"),
    "capture_rows": _op("capture_rows"),
    "add_rows": _op("add_rows", "cc_kernels/ops/capture_rows.py"),
    "capture_add_rows": _op("capture_add_rows", "benchmarks/ops/capture_rows.py"),
    "decide": _op("decide", *_DECISION),
    "connect": _op("connect", *_DECISION, "benchmarks/baselines/hooks.py::decide_and_select"),
    "transform_rows": _op("transform_rows", *_STREAM),
    "gate_up_swiglu": _op("gate_up_swiglu", *_STREAM),
    "gate_up_matmul": (
        "benchmarks/candidates/gate_up_matmul.py",
        "benchmarks/ops/gate_up_matmul.py",
        "cc_kernels/ops/swiglu.py",
        *_CLOCK,
    ),
}
_COMPILED_ONLY = "cc_kernels/aot"
_UNCOUNTED_FIELDS = ("ctx", "kind", "type_comment", "type_ignores")


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    is_text = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return body[1:] if is_text else body


def _plain(value: Any) -> Any:
    """A syntax tree as nested tuples that are the same under every Python: empty fields are left out."""
    if isinstance(value, ast.AST):
        fields = {name: field for name, field in ast.iter_fields(value) if name not in _UNCOUNTED_FIELDS}
        if isinstance(value, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            fields["body"] = _without_docstring(value.body)
        return (type(value).__name__, *((n, _plain(f)) for n, f in fields.items() if f is not None and f != []))
    return tuple(map(_plain, value)) if isinstance(value, list) else repr(value)


def _names(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.Assign):
        return {target.id for target in statement.targets if isinstance(target, ast.Name)}
    if isinstance(statement, ast.AnnAssign):
        return {statement.target.id} if isinstance(statement.target, ast.Name) else set()
    return {getattr(statement, "name", "")}


def definitions(text: str, name: str | None = None) -> Iterator[str]:
    """A digest of each top-level statement of Python source; with `name` of that definition alone.

    Example:
        >>> list(definitions("x = 1  # one")) == list(definitions("'''A module.'''\\nimport os\\n\\nx = 1"))
        True
        >>> list(definitions("x = 1")) == list(definitions("x = 1.0"))
        False
    """
    for statement in _without_docstring(ast.parse(text).body):
        names = _names(statement)
        if isinstance(statement, (ast.Import, ast.ImportFrom)) or names == {"__all__"}:
            continue
        if name is None or name in names:
            yield hashlib.sha256(repr(_plain(statement)).encode()).hexdigest()


def files_of(part: str, root: Path = ROOT) -> list[Path]:
    """The files that a part depends on.

    Raises:
        ValueError: unknown `part`, or a pattern of it that no file has.
    """
    return sorted({path for path, _ in _found(part, root)})


def _found(part: str, root: Path) -> Iterator[tuple[Path, str | None]]:
    if part not in SOURCES:
        raise ValueError(f"part: expected one of {', '.join(SOURCES)}, got {part!r}")
    for pattern in SOURCES[part]:
        glob, _, name = pattern.partition("::")
        paths = [path for path in sorted(root.glob(glob)) if path.parent != root / _COMPILED_ONLY]
        if not paths:
            raise ValueError(f"sources of {part}: expected files at {glob}, found none")
        yield from ((path, name or None) for path in paths)


def content(part: str, root: Path = ROOT) -> str:
    """The digest of all definitions that a part depends on.

    Raises:
        ValueError: unknown `part`, or a file or definition of it that is missing.

    Example:
        >>> content("swiglu") == content("swiglu"), content("swiglu") == content("connect")
        (True, False)
    """
    return _content(part, root)


@lru_cache(maxsize=256)
def _content(part: str, root: Path) -> str:
    found: set[str] = set()
    for path, name in _found(part, root):
        some = set(definitions(path.read_text(encoding="utf-8"), name))
        if name is not None and not some:
            raise ValueError(f"sources of {part}: expected a definition of {name} in {path.relative_to(root)}")
        found |= some
    return hashlib.sha256("".join(sorted(found)).encode()).hexdigest()[:16]


def contents(parts: Iterable[str]) -> dict[str, str]:
    """`content` of each part, as a record keeps it."""
    return {part: content(part) for part in parts}


__all__ = ["SOURCES", "content", "contents", "definitions", "files_of"]
