"""Records of `benchmarks.host_time`: what a call of an op, or a training forward, costs the host."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.show.table import Kind, Number, Record, Table

_PER_LAYER = "us_per_layer_beyond_two_stock"


def _how(record: Record) -> str:
    return ", up to the launch" if record.get("dry") else ""


def tables(record: Record) -> Iterator[Table]:
    """One row per op, a column per implementation; of whole forwards one row per depth."""
    device = record["facts"]["device"]
    for key, what, value in (("op", "one call", "us"), ("layers", "a training forward", _PER_LAYER)):
        found: dict[str, dict[str, str]] = {}
        for row in (row for row in record["rows"] if key in row):
            found.setdefault(str(row[key]), {})[row["implementation"]] = f"{row[value]:.1f}"
        names = list(dict.fromkeys(name for cells in found.values() for name in cells))
        rows = [[of, *(cells.get(name, "") for name in names)] for of, cells in found.items()]
        header = [key, *("ours" if name in ("cc_kernels", "cc_model") else name for name in names)]
        beyond = " beyond two stock forwards, per layer" if key == "layers" else ""
        if rows:
            yield Table(f"Host µs of {what}{beyond}{_how(record)}, {device}", header, rows, "host")


def numbers(record: Record) -> Iterator[Number]:
    """Median microseconds; those of a dry run, which leaves the launch out, are named so."""
    dry = ", dry" if record.get("dry") else ""
    for row in record["rows"]:
        if "op" in row:
            yield Number(f"{row['op']}, {row['implementation']}{dry}, host_us", row["us"], "host")
        else:
            name = f"{row['layers']} layers, {row['implementation']}{dry}, host_us_per_layer"
            yield Number(name, row[_PER_LAYER], "host")


KIND = Kind(tables, numbers)
