"""Records of `python -m benchmarks.ops`: device and eager time of each op's implementations."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.show.table import Kind, Number, Record, Table, numbers_of

_SHARES = ("share_of_copy", "share_of_read")


def _cell(row: Record | None) -> str:
    if row is None:
        return ""
    if "refused" in row:
        return "refused"
    if "device_us" not in row:
        return f"{row['eager_us']['median']:,.1f} eager" if "eager_us" in row else "–"
    share = next((f" ({row[name]:.0%})" for name in reversed(_SHARES) if name in row), "")
    return f"{row['device_us']['median']:.1f}{share}"


def tables(record: Record) -> Iterator[Table]:
    """One table per op: a row per case, a column per implementation."""
    for op, rows in record["ops"].items():
        names = list(dict.fromkeys(row["implementation"] for row in rows if "left out" not in row))
        cases: dict[str, dict[str, Record]] = {}
        for row in rows:
            if "left out" not in row:
                cases.setdefault(row["case"], {})[row["implementation"]] = row
        if not cases:  # there was no time for any
            continue
        device = record["facts"].get("gpu") or record["facts"].get("device")
        reads = any("share_of_read" in row for row in rows)
        title = f"{op}, {device}: µs on the device (share of the bandwidth of a {'read' if reads else 'copy'})"
        body = [[case, *(_cell(found.get(name)) for name in names)] for case, found in cases.items()]
        yield Table(title, ["case", *("ours" if name == "cc_kernels" else name for name in names)], body, op)


def numbers(record: Record) -> Iterator[Number]:
    """Of each case and implementation: microseconds on the device and eager, shares of the bandwidth."""
    for op, rows in record["ops"].items():
        for row in rows:
            what = f"{row['case']}, {row['implementation']}"
            yield from numbers_of(what, op, row, ("device_us", "eager_us", *_SHARES))


def failures(record: Record) -> list[str]:
    """Implementations that were refused and cases for which there was no time."""
    found = []
    for rows in record["ops"].values():
        for row in rows:
            why = row.get("refused") or row.get("left out")
            found += [f"{row['case']}, {row['implementation']}: {why}"] if why else []
    return found


KIND = Kind(tables, numbers, failures=failures)
