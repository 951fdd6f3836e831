"""Records of `pytest --record-versions`: which versions the tests held with."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.show.table import Kind, Number, Record, Table

HEADER = ["torch", "triton", "transformers", "device", "tests", "passed", "skipped", "from"]


def tables(record: Record) -> Iterator[Table]:
    """One row for each run, the newest torch first.

    Example:
        >>> run = {"torch": "2.13.0", "triton": None, "transformers": "5.24.0", "device": "CPU", "tests": "all"}
        >>> next(tables({"runs": [run | {"passed": 7, "skipped": 1, "source": "a run"}]})).rows
        [['2.13.0', '–', '5.24.0', 'CPU', 'all', '7', '1', 'a run']]
    """

    def newest(run: Record) -> tuple[list[int], str]:
        numbers = run["torch"].partition("+")[0].split(".")
        return [-int(part) for part in numbers if part.isdigit()], run["tests"]

    names = [*HEADER[:-1], "source"]
    runs = sorted(record["runs"], key=newest)
    rows = [["–" if run[name] is None else str(run[name]) for name in names] for run in runs]
    yield Table("Versions that the tests held with", HEADER, rows, "versions")


def numbers(record: Record) -> Iterator[Number]:
    """None that two commits are compared by."""
    yield from ()


KIND = Kind(tables, numbers)
