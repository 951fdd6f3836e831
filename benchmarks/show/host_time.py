"""Records of `benchmarks.host_time`: what a call of an op, a training forward, or `generate` costs the host."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.show.table import Kind, Number, Record, Table

_PER_LAYER = "us_per_layer_beyond_two_stock"


def _how(record: Record) -> str:
    return ", up to the launch" if record.get("dry") else ""


def _written(implementation: str) -> str:
    return implementation.replace("cc_kernels", "ours").replace("cc_model", "ours")


def tables(record: Record) -> Iterator[Table]:
    """One row per op, a column per implementation; of whole forwards one row per depth."""
    device = record["facts"]["device"]
    for key, what, value in (("op", "one call", "us"), ("layers", "a training forward", _PER_LAYER)):
        found: dict[str, dict[str, str]] = {}
        for row in (row for row in record["rows"] if key in row):
            found.setdefault(str(row[key]), {})[row["implementation"]] = f"{row[value]:.1f}"
        names = list(dict.fromkeys(name for cells in found.values() for name in cells))
        rows = [[of, *(cells.get(name, "") for name in names)] for of, cells in found.items()]
        header = [key, *map(_written, names)]
        beyond = " beyond two stock forwards, per layer" if key == "layers" else ""
        if rows:
            yield Table(f"Host µs of {what}{beyond}{_how(record)}, {device}", header, rows, "host")
    decoding = [_decoding(row) for row in record["rows"] if "generate" in row]
    if decoding:
        header = ["layers", "", "first token µs", "− stock, in its decode steps", "decode step µs", "÷ stock"]
        yield Table(f"Host time of generate{_how(record)}, {device}", header, decoding, "decoding")


def _decoding(row: Record) -> list[str]:
    """A way's line: medians, and for ratios the quartiles."""
    added, ratio = row["added_steps"], row["step_ratio"]
    return [
        str(row["generate"]),
        _written(row["implementation"]),
        f"{row['first_us']:,.0f}",
        f"{added['median']:.2f} ({added['low']:.2f}–{added['high']:.2f})",
        f"{row['step_us']:,.0f}",
        f"{ratio['median']:.3f} ({ratio['low']:.3f}–{ratio['high']:.3f})",
    ]


def numbers(record: Record) -> Iterator[Number]:
    """Medians: microseconds, or ratios for `generate`; those of a dry run, which leaves the launch out, say so."""
    dry = ", dry" if record.get("dry") else ""
    for row in record["rows"]:
        if "op" in row:
            yield Number(f"{row['op']}, {row['implementation']}{dry}, host_us", row["us"], "host")
        elif "generate" in row:
            name = f"generate, {row['generate']} layers, {row['implementation']}{dry}"
            yield Number(f"{name}, added_steps", row["added_steps"]["median"], "decoding")
            yield Number(f"{name}, step_ratio", row["step_ratio"]["median"], "decoding")
        else:
            name = f"{row['layers']} layers, {row['implementation']}{dry}"
            yield Number(f"{name}, host_us_per_layer", row[_PER_LAYER], "host")
            yield Number(f"{name}, host_us", row["us"], "host")


KIND = Kind(tables, numbers)
