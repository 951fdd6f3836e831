"""Records of `pytest benchmarks/suites --benchmark-json=FILE`: one op at a time, by pytest-benchmark."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.show.table import Kind, Number, Record, Table


def tables(record: Record) -> Iterator[Table]:
    """One table per group."""
    groups: dict[str, list[list[str]]] = {}
    for test in record["benchmarks"]:
        extra, stats = test["extra_info"], test["stats"]
        row = [
            extra["implementation"],
            f"{1e6 * stats['median']:.1f} ({1e6 * stats['q1']:.1f}–{1e6 * stats['q3']:.1f})",
            f"{extra['gb_per_s']:.1f}",
            f"{extra['share_of_copy']:.0%}",
        ]
        groups.setdefault(test["group"], []).append(row)
    for name, rows in groups.items():
        yield Table(name, ["implementation", "µs", "GB/s", "share of copy"], rows, "suites")


def numbers(record: Record) -> Iterator[Number]:
    """Median seconds by the name of the test."""
    for test in record["benchmarks"]:
        yield Number(test["name"], test["stats"]["median"], "suites")


KIND = Kind(tables, numbers)
