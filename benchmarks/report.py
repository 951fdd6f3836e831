"""`python -m benchmarks.report RESULTS… --out DIR`: one Markdown page with plots from any number of JSON records.

Reads records of `profile_fusion`, `train_run`, `fit_matrix`, `gpu_profile` and `gpu_check`, and files that
`pytest benchmarks --benchmark-json=FILE` wrote; a folder stands for the records in it. `--against OLDER…` adds a table
that compares each number of RESULTS with the same one of other records, of another commit for example.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.show.plots import fit_plot, loss_plot, plot_profile
from benchmarks.show.tables import (
    Table,
    failures,
    fit_table,
    kernel_tables,
    profile_tables,
    profile_title,
    suite_tables,
    train_run_table,
)
from cc_model.files import write_text

Record = dict[str, Any]


def kind_of(record: Any) -> str | None:
    """What wrote a record; None for JSON of other origin.

    Example:
        >>> kind_of({"kind": "train_run"}), kind_of({"sections": {}}), kind_of([1])
        ('train_run', 'gpu_check', None)
    """
    if not isinstance(record, dict):
        return None
    if "kind" in record:
        return record["kind"] if record["kind"] in KINDS else None
    if "sections" in record:
        return "gpu_check"
    return "suites" if "benchmarks" in record and "machine_info" in record else None


def read(paths: list[Path]) -> dict[str, Record]:
    """Records by the name of their file, in order; of folders those that this program knows.

    Raises:
        ValueError: no such file, not JSON, or of an unknown kind; or no record at all.
    """
    records: dict[str, Record] = {}
    for path in paths:
        if not path.exists():
            raise ValueError(f"results: expected a file or a folder, found nothing at {path}")
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            try:
                record = json.loads(file.read_text(encoding="utf-8"))
            except json.JSONDecodeError as error:
                raise ValueError(f"results: expected JSON in {file}, got {error}") from error
            if kind_of(record) is not None:
                records[_unused(file.stem, records)] = record
            elif not path.is_dir():
                raise ValueError(f"results: expected a record of one of {', '.join(KINDS)} in {file}")
    if not records:
        raise ValueError(f"results: found no record in {', '.join(map(str, paths))}")
    return records


def _unused(name: str, taken: dict[str, Record]) -> str:
    number = 2
    candidate = name
    while candidate in taken:
        candidate, number = f"{name}-{number}", number + 1
    return candidate


def _facts(record: Record) -> Record:
    if "facts" in record:
        return record["facts"]
    if kind_of(record) == "gpu_check":
        return record["sections"].get("device", {})
    return record["benchmarks"][0]["extra_info"] if record["benchmarks"] else {}


def provenance(record: Record) -> str:
    """Device, versions and commit on one line."""
    found = _facts(record)
    commit = found.get("commit") or record.get("commit_info", {}).get("id", "unknown")[:10]
    versions = [f"{name} {found[name]}" for name in ("torch", "triton", "transformers") if found.get(name)]
    return ", ".join([found.get("gpu") or found.get("device", "CPU"), *versions, f"commit {commit}"])


def _profile(record: Record, name: str, out: Path) -> Iterator[str]:
    yield from (table.markdown() for table in profile_tables(record))
    yield from (f"![{path.stem}]({path.name})" for path in plot_profile(record, out, prefix=f"{name}-"))


def _train_run(record: Record, name: str, out: Path) -> Iterator[str]:
    yield train_run_table(record).markdown()
    yield f"![losses]({loss_plot(record, out / f'{name}-loss.png').name})"


def _fit(record: Record, name: str, out: Path) -> Iterator[str]:
    yield fit_table(record).markdown()
    yield f"![fit]({fit_plot(record, out / f'{name}-fit.png').name})"


def _parts(record: Record, name: str, out: Path) -> Iterator[str]:
    rows = [
        [part, str(of.get("returncode", of.get("left out"))), f"{of.get('seconds', 0):.0f}"]
        for part, of in record["parts"].items()
    ]
    yield Table("Parts", ["part", "exit status", "seconds"], rows).markdown()


def _kernels(record: Record, name: str, out: Path) -> Iterator[str]:
    yield from (table.markdown() for table in kernel_tables(record))


def _suites(record: Record, name: str, out: Path) -> Iterator[str]:
    yield from (table.markdown() for table in suite_tables(record))


KINDS: dict[str, Callable[[Record, str, Path], Iterator[str]]] = {
    "profile_fusion": _profile,
    "train_run": _train_run,
    "fit_matrix": _fit,
    "gpu_profile": _parts,
    "gpu_check": _kernels,
    "suites": _suites,
}


def metrics(record: Record) -> dict[str, float]:
    """Every number that two commits can be compared by: times in seconds, bytes, ratios, counts."""
    kind = kind_of(record)
    found: dict[str, float] = {}
    if kind == "profile_fusion":
        title = profile_title(record)
        parts = {name: record[name] for name in ("train", "infer", "static") if "modes" in record.get(name, {})}
        curve = record["curve"] if isinstance(record.get("curve"), list) else []
        parts |= {f"curve {point['tokens']}": point for point in curve}
        for part, section in parts.items():
            for mode, of in section["modes"].items():
                found |= {f"{title}, {part}, {mode}, {name}": value for name, value in _numbers(of)}
    elif kind == "train_run":
        for name, run in record["runs"].items():
            found |= {f"{record['arguments']['model']}, run, {name}, {key}": value for key, value in _numbers(run)}
    elif kind == "fit_matrix":
        for row in record["rows"]:
            found |= {f"fit of {row['pairs']} pairs, {row['method']}, {key}": value for key, value in _numbers(row)}
    elif kind == "gpu_check":
        rows = [row for part in record["sections"].values() if isinstance(part, list) for row in part]
        for row in rows:
            found |= {f"{row['case']}, {row['implementation']}, {key}": value for key, value in _numbers(row)}
    elif kind == "suites":
        found = {test["name"]: test["stats"]["median"] for test in record["benchmarks"]}
    return found


_COMPARED = (
    "seconds",
    "ratio",
    "first_token",
    "decode_step",
    "peak_bytes",
    "kernels",
    "device_us",
    "eager_us",
    "bytes",
)


def _numbers(of: Record) -> Iterator[tuple[str, float]]:
    for name in _COMPARED:
        value = of.get(name)
        if isinstance(value, dict):
            value = value["median"]
        if value is not None:
            yield name, float(value)


def comparison(new: dict[str, Record], old: dict[str, Record]) -> Table:
    """Numbers that both have: those of the older records, those of the newer, and newer ÷ older.

    Example:
        >>> def record(seconds):
        ...     return {"kind": "fit_matrix", "rows": [{"pairs": 9, "method": "streaming", "seconds": seconds}]}
        >>> comparison({"new": record(1.0)}, {"old": record(2.0)}).rows
        [['fit of 9 pairs, streaming, seconds', '2', '1', '0.500']]
    """
    before, after = ({k: v for record in side.values() for k, v in metrics(record).items()} for side in (old, new))
    rows = [
        [name, f"{before[name]:.4g}", f"{value:.4g}", f"{value / before[name]:.3f}" if before[name] else "–"]
        for name, value in after.items()
        if name in before
    ]
    return Table("Newer against older", ["number", "older", "newer", "newer ÷ older"], rows)


def page(records: dict[str, Record], older: dict[str, Record], out: Path) -> str:
    """The Markdown page; plots are written into `out`."""
    parts = ["# Benchmark report"]
    for name, record in records.items():
        parts += [f"## {name}", provenance(record), *KINDS[str(kind_of(record))](record, name, out)]
        if "kind" in record:
            parts += [f"- refused or failed: {failure}" for failure in failures(record)]
    if older:
        said = "; ".join(dict.fromkeys(map(provenance, older.values())))
        parts += ["## Comparison", f"Older: {said}", comparison(records, older).markdown()]
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Write `report.md` and its plots."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULTS", help="JSON files or folders")
    parser.add_argument("--against", type=Path, nargs="+", default=[], metavar="OLDER", help="records to compare with")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), metavar="DIR", help="%(default)s")
    arguments = parser.parse_args(argv)
    try:
        records = read(arguments.results)
        older = read(arguments.against) if arguments.against else {}
    except ValueError as error:
        parser.error(str(error))
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out / "report.md", page(records, older, arguments.out))
    print(f"{arguments.out / 'report.md'}: {len(records)} records")
    return 0


if __name__ == "__main__":
    sys.exit(main())
