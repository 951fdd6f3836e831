"""Records of `python -m benchmarks.jobs.kernel_tests`: how kernel tests, golden vectors and models went on a device."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.show.table import Kind, Number, Record, Table

_COUNTS = ("passed", "failed", "errors", "skipped")
_TITLES = {"tests": "Kernel tests", "golden": "Golden vectors", "model-tests": "Model tests"}


def _part(record: Record) -> str:
    """What the record is of: one part alone, or the kernel tests."""
    parts = list(record.get("content", {}))
    return parts[0] if len(parts) == 1 and parts[0] in _TITLES else "tests"


def tables(record: Record) -> Iterator[Table]:
    """One row of counts."""
    row = [*(str(record.get(name, 0)) for name in _COUNTS), "stopped early" if record.get("stopped") else "all ran"]
    part = _part(record)
    yield Table(f"{_TITLES[part]}, {record['facts'].get('device')}", [*_COUNTS, "end"], [row], part)


def numbers(record: Record) -> Iterator[Number]:
    """The counts."""
    for name in _COUNTS:
        yield Number(f"{_TITLES[_part(record)]}, {name}", float(record.get(name, 0)), _part(record))


def failures(record: Record) -> list[str]:
    """The tests that failed."""
    return [f"test: {line}" for line in record.get("failures", [])]


KIND = Kind(tables, numbers, failures=failures)
