"""`python -m benchmarks.document [FILE…]`: write the tables of committed records into documents.

A document marks the places: `<!-- record: benchmarks/results/NAME.json -->` and, below the tables, `<!-- end -->`;
`<!-- record: PATH 2 -->` is the second table alone. What stands in between is replaced, so that no number in a document
was typed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.measure.record import ROOT
from benchmarks.measure.versions import KIND
from benchmarks.show.tables import Table, fit_table, kernel_tables, profile_tables, suite_tables, train_run_table
from benchmarks.show.versions import versions_table
from cc_model.files import write_text

DOCUMENTS = (ROOT / "docs" / "benchmarks.md", ROOT / "README.md")
_PLACE = re.compile(r"(<!-- record: (\S+)(?: (\d+))? -->\n).*?(<!-- end -->)", re.DOTALL)
_TABLES: dict[str, Callable[[Any], Iterable[Table]]] = {
    "profile_fusion": profile_tables,
    "train_run": lambda record: [train_run_table(record)],
    "fit_matrix": lambda record: [fit_table(record)],
    KIND: lambda record: [versions_table(record)],
}


def tables_of(record: dict[str, Any]) -> list[Table]:
    """All tables of one record, by its kind.

    Raises:
        ValueError: a record of another kind.
    """
    if "sections" in record:
        return list(kernel_tables(record))
    if "benchmarks" in record:
        return list(suite_tables(record))
    if record.get("kind") not in _TABLES:
        raise ValueError(f"record: expected a kind of {', '.join(_TABLES)}, got {record.get('kind')!r}")
    return list(_TABLES[record["kind"]](record))


def filled(text: str, root: Path = ROOT) -> str:
    """`text` with the tables of the records that it names, which are read from `root`.

    Raises:
        ValueError: no such record, or no such table in it.
    """

    def tables(match: re.Match[str]) -> str:
        path = root / match[2]
        if not path.is_file():
            raise ValueError(f"record: expected a file, found none at {match[2]}")
        found = tables_of(json.loads(path.read_text(encoding="utf-8")))
        if match[3] is not None:
            number = int(match[3])
            if not 1 <= number <= len(found):
                raise ValueError(f"record: expected a table from 1 to {len(found)} of {match[2]}, got {number}")
            found = [found[number - 1]]
        body = "\n\n".join(table.markdown() for table in found)
        return f"{match[1]}{body}\n{match[4]}"

    return _PLACE.sub(tables, text)


def main(argv: list[str] | None = None) -> int:
    """Rewrite the documents; says which changed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.document", description=__doc__)
    parser.add_argument("files", type=Path, nargs="*", default=list(DOCUMENTS), metavar="FILE")
    for path in parser.parse_args(argv).files:
        before = path.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            write_text(path, after)
        print(f"{path}: {'changed' if after != before else 'unchanged'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
