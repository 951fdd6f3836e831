"""Records of `benchmarks.host_time`: what one call of an op costs the host."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.show.table import Kind, Number, Record, Table


def tables(record: Record) -> Iterator[Table]:
    """One row per op, a column per implementation."""
    found: dict[str, dict[str, str]] = {}
    for row in record["rows"]:
        found.setdefault(row["op"], {})[row["implementation"]] = f"{row['us']:.1f}"
    names = list(dict.fromkeys(name for cells in found.values() for name in cells))
    rows = [[op, *(cells.get(name, "") for name in names)] for op, cells in found.items()]
    header = ["op", *("ours" if name == "cc_kernels" else name for name in names)]
    how = ", up to the launch" if record.get("dry") else ""
    yield Table(f"Host µs of one call{how}, {record['facts']['device']}", header, rows, "host")


def numbers(record: Record) -> Iterator[Number]:
    """Median microseconds; those of a dry run, which leaves the launch out, are named so."""
    dry = ", dry" if record.get("dry") else ""
    for row in record["rows"]:
        yield Number(f"{row['op']}, {row['implementation']}{dry}, host_us", row["us"], "host")


KIND = Kind(tables, numbers)
