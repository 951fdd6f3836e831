"""Records of `benchmarks.fit_matrix`: time and peak memory of the matrix fit against the number of pairs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.show.table import Kind, Number, Record, Table, mebibytes, numbers_of

_METHODS = ("streaming", "stacking")


def tables(record: Record) -> Iterator[Table]:
    """One row per number of pairs."""
    by_pairs: dict[int, Record] = {}
    for row in record["rows"]:
        by_pairs.setdefault(row["pairs"], {})[row["method"]] = row
    rows = []
    for pairs, methods in by_pairs.items():
        cells = [f"{pairs:,}"]
        for method in _METHODS:
            of = methods.get(method, {})
            cells += [f"{of['seconds']:.2f}", mebibytes(of["bytes"])] if "seconds" in of else ["–", "–"]
        difference = methods.get("stacking", {}).get("matrix_difference")
        rows.append([*cells, "–" if difference is None else f"{difference:.1e}"])
    header = ["pairs", "streaming s", "peak MiB", "stacking s", "peak MiB", "difference of the matrices"]
    yield Table(f"Matrix fit, {record['arguments']['model']}, {record['facts']['device']}", header, rows, "fit")


def numbers(record: Record) -> Iterator[Number]:
    """Of both methods: seconds and bytes."""
    for row in record["rows"]:
        yield from numbers_of(f"fit of {row['pairs']} pairs, {row['method']}", "fit", row, ("seconds", "bytes"))


def plots(record: Record, folder: Path, prefix: str = "") -> list[Path]:
    """Peak memory and time against the number of pairs."""
    from benchmarks.show.figure import COLOURS, finish, plt

    figure, sides = plt.subplots(1, 2, figsize=(9, 3.6))
    for method, colour in zip(_METHODS, (COLOURS["ours"], COLOURS["hooks"])):
        rows = [row for row in record["rows"] if row["method"] == method and "seconds" in row]
        pairs = [row["pairs"] for row in rows]
        sides[0].plot(pairs, [row["bytes"] / 2**20 for row in rows], marker="o", label=method, color=colour)
        sides[1].plot(pairs, [row["seconds"] for row in rows], marker="o", label=method, color=colour)
    for axes, label in zip(sides, ("peak memory, MiB", "seconds")):
        axes.set_xscale("log")
        axes.set_xlabel("prompt pairs")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)
    return [finish(figure, folder / f"{prefix}fit.png")]


def failures(record: Record) -> list[str]:
    """Fits that failed."""
    failed = [row for row in record["rows"] if "refused" in row]
    return [f"{row['pairs']} pairs, {row['method']}: {row['refused']}" for row in failed]


KIND = Kind(tables, numbers, plots=plots, failures=failures)
