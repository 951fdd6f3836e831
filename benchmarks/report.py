"""`python -m benchmarks.report RESULTS… --out DIR`: one Markdown page with plots from any number of JSON records.

Reads what the other commands write, and files of `pytest benchmarks/suites --benchmark-json=FILE`; a folder stands for
the records in it. `--against OLDER…` adds a table that compares each number of RESULTS with the same one of other
records, of another commit for example.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.show.kinds import KINDS, kind_of, read
from benchmarks.show.table import Record, Table
from cc_model.files import write_text


def read_all(paths: list[Path]) -> dict[str, Record]:
    """Records by the name of their file, in order; of folders those that this program knows.

    Raises:
        ValueError: no such file, not JSON, or of an unknown kind; or no record at all.
    """
    records: dict[str, Record] = {}
    for path in paths:
        if not path.exists():
            raise ValueError(f"results: expected a file or a folder, found nothing at {path}")
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            found = read(file)
            if not found and not path.is_dir():
                raise ValueError(f"results: expected a record of one of {', '.join(KINDS)} in {file}")
            for name, record in found.items():
                records[_unused(name, records)] = record
    if not records:
        raise ValueError(f"results: found no record in {', '.join(map(str, paths))}")
    return records


def _unused(name: str, taken: dict[str, Record]) -> str:
    number = 2
    candidate = name
    while candidate in taken:
        candidate, number = f"{name}-{number}", number + 1
    return candidate


def provenance(record: Record) -> str:
    """Device, versions and commit on one line."""
    found = record["facts"]
    versions = [f"{name} {found[name]}" for name in ("torch", "triton", "transformers") if found.get(name)]
    device = found.get("gpu") or found.get("device", "CPU")
    return ", ".join([device, *versions, f"commit {found.get('commit') or 'unknown'}"])


def metrics(record: Record) -> dict[str, float]:
    """Every number that two commits can be compared by, named after device and dtype, too."""
    dtype = record.get("arguments", {}).get("dtype")
    where = ", ".join([str(record["facts"].get("gpu") or record["facts"].get("device")), *([dtype] if dtype else [])])
    return {f"{where}: {number.name}": number.value for number in kind_of(record).numbers(record)}


def comparison(new: dict[str, Record], old: dict[str, Record]) -> Table:
    """Numbers that both have: those of the older records, those of the newer, and newer ÷ older.

    Example:
        >>> def record(seconds):
        ...     rows = [{"pairs": 9, "method": "streaming", "seconds": seconds}]
        ...     return {"kind": "fit_matrix", "facts": {"device": "a CPU"}, "rows": rows}
        >>> comparison({"new": record(1.0)}, {"old": record(2.0)}).rows
        [['a CPU: fit of 9 pairs, streaming, seconds', '2', '1', '0.500']]
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
        kind = kind_of(record)
        parts += [f"## {name}", provenance(record), *(table.markdown() for table in kind.tables(record))]
        pictures = kind.plots(record, out, f"{name.replace('/', '-')}-")
        parts += [f"![{path.stem}]({path.name})" for path in pictures]
        parts += [f"- refused or failed: {failure}" for failure in kind.failures(record)]
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
        records = read_all(arguments.results)
        older = read_all(arguments.against) if arguments.against else {}
    except ValueError as error:
        parser.error(str(error))
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out / "report.md", page(records, older, arguments.out))
    print(f"{arguments.out / 'report.md'}: {len(records)} records")
    return 0


if __name__ == "__main__":
    sys.exit(main())
