"""The table of the versions that the tests held with."""

from __future__ import annotations

from typing import Any

from benchmarks.show.tables import Table

HEADER = ["torch", "triton", "transformers", "device", "tests", "passed", "skipped", "from"]


def versions_table(record: dict[str, Any]) -> Table:
    """One row for each run, the newest torch first.

    Example:
        >>> run = {"torch": "2.13.0", "triton": None, "transformers": "5.24.0", "device": "CPU", "tests": "all"}
        >>> versions_table({"runs": [run | {"passed": 7, "skipped": 1, "source": "a run"}]}).rows
        [['2.13.0', '–', '5.24.0', 'CPU', 'all', '7', '1', 'a run']]
    """

    def newest(run: dict[str, Any]) -> tuple[list[int], str]:
        numbers = run["torch"].partition("+")[0].split(".")
        return [-int(part) for part in numbers if part.isdigit()], run["tests"]

    names = [*HEADER[:-1], "source"]
    rows = [
        ["–" if run[name] is None else str(run[name]) for name in names] for run in sorted(record["runs"], key=newest)
    ]
    return Table("Versions that the tests held with", HEADER, rows)
