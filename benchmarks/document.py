"""`python -m benchmarks.document [FILE…]`: write every measured number of the documents from committed records.

A document marks the places, and what stands between a mark and `<!-- end -->` is replaced:

    <!-- newest: KIND PART ON WORDS -->   the newest table of a part of a kind that was made on a `cpu` or a `gpu`, with
                                          WORDS in its title (several: `1b,; step, 8`); below it record and commit, with
                                          a dagger where the code has changed since
    <!-- show: NAME -->                   goals, missed, headlines, jobs or floors
    <!-- record: PATH 2 -->               all tables of one record, or the second alone

Pictures of the newest records are written beside them (docs/images).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.jobs.planning import calls_table
from benchmarks.measure.record import ROOT
from benchmarks.show.goals import GOALS, goal_table, missed
from benchmarks.show.headlines import headline_table
from benchmarks.show.kinds import KINDS, kind_of, read
from benchmarks.show.library import Library, Stored
from benchmarks.show.profile_fusion import curve_plot, throughput_plot
from benchmarks.show.table import Table
from cc_kernels.aot import floors
from cc_model.files import write_text

DOCUMENTS = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("kernels", "serving", "benchmarks")))
# Where a picture lies, of which newest table it is, and what draws it.
PICTURES: dict[str, tuple[tuple[str, ...], Callable[..., Path]]] = {
    "docs/images/training-gpu.png": (("profile_fusion", "train", "gpu", "1b,", "step, 8"), throughput_plot),
    "docs/images/first-token-cpu.png": (("profile_fusion", "curve", "cpu", "small,"), curve_plot),
}
NOT_MEASURED = "Not measured yet."
_PLACE = re.compile(r"(<!-- (newest|show|record): ([^\n]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def _missed(library: Library) -> str:
    lines = [(goal, found) for goal in GOALS if (found := missed(goal, library)) is not None]
    return "\n".join(
        f"- {goal.what}: {goal.write(found.value)}, aimed at {'≥' if goal.at_least else '≤'} {goal.write(goal.bound)} "
        f"({found.stored.provenance(found.part)})"
        for goal, found in lines
    )


SHOWN: dict[str, Callable[[Library], str]] = {
    "goals": lambda library: goal_table(library).markdown(),
    "missed": lambda library: _missed(library) or "Every goal that was measured is met.",
    "headlines": lambda library: headline_table(library).markdown(),
    "jobs": lambda library: calls_table().markdown(),
    "floors": lambda library: floors.table(),
}


def _show(asked: str, library: Library, root: Path) -> str:
    if asked not in SHOWN:
        raise ValueError(f"show: expected one of {', '.join(SHOWN)}, got {asked!r}")
    return SHOWN[asked](library)


def _newest(asked: str, library: Library, root: Path) -> str:
    kind, part, on, words = (asked.split(" ", 3) + [""] * 3)[:4]
    if kind not in KINDS or on not in ("cpu", "gpu"):
        raise ValueError(f"newest: expected KIND PART cpu|gpu WORDS with a kind of {', '.join(KINDS)}, got {asked!r}")
    found = next(library.tables(kind, part, on, *words.split("; ")), None)
    return NOT_MEASURED if found is None else f"{found[0].markdown()}\n\n{_of(found[0], found[1])}"


def _of(table: Table, stored: Stored) -> str:
    versions = [f"{name} {stored.facts[name]}" for name in ("torch", "triton", "driver") if stored.facts.get(name)]
    return f"Record {stored.provenance(table.part)} ({', '.join(versions)})."


def _record(asked: str, library: Library, root: Path) -> str:
    path, _, number = asked.partition(" ")
    if not (root / path).is_file():
        raise ValueError(f"record: expected a file, found none at {path}")
    tables = [table for record in read(root / path).values() for table in kind_of(record).tables(record)]
    if not tables:
        raise ValueError(f"record: expected a record of a kind of {', '.join(KINDS)} in {path}")
    if number and not 1 <= int(number) <= len(tables):
        raise ValueError(f"record: expected a table from 1 to {len(tables)} of {path}, got {number}")
    return "\n\n".join(table.markdown() for table in (tables if not number else [tables[int(number) - 1]]))


_FILL = {"newest": _newest, "show": _show, "record": _record}


def filled(text: str, library: Library, root: Path = ROOT) -> str:
    """`text` with every place filled in from `library`; records that are named by their path are read from `root`.

    Raises:
        ValueError: a place that asks for what there cannot be.
    """
    return _PLACE.sub(lambda match: f"{match[1]}{_FILL[match[2]](match[3], library, root)}\n{match[4]}", text)


def picture_of(name: str, library: Library) -> tuple[Stored, str] | None:
    """The newest record that a picture shows, and the digest of its numbers, which is kept in the file; or None."""
    kind, part, on, *words = PICTURES[name][0]
    found = next(library.tables(kind, part, on, *words), None)
    if found is None:
        return None
    table, stored = found
    numbers = json.dumps(stored.record[table.part], sort_keys=True)
    return stored, f"{stored.name} {hashlib.sha256(numbers.encode()).hexdigest()[:16]}"


def drawn_of(path: Path) -> str | None:
    """Of what a picture was drawn, as it says itself."""
    from PIL import Image

    if not path.is_file():
        return None
    with Image.open(path) as image:
        return image.info.get("Description")


def draw(library: Library, root: Path = ROOT) -> list[Path]:
    """Write the pictures that show something else than the newest record; those without a record are left alone."""
    made = []
    for name, (_, plot) in PICTURES.items():
        found = picture_of(name, library)
        if found is not None and drawn_of(root / name) != found[1]:
            made.append(plot(found[0].record, root / name, of=found[1]))
    return made


def main(argv: list[str] | None = None) -> int:
    """Rewrite documents and pictures; says which documents changed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.document", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="instead of all documents and pictures")
    given = parser.parse_args(argv).files
    for path in given:
        if not path.is_file():
            parser.error(f"FILE: expected a document, found no file {path}")
    library = Library()
    for path in given or DOCUMENTS:
        before = path.read_text(encoding="utf-8")
        try:
            after = filled(before, library)
        except ValueError as error:
            parser.error(f"{path}: {error}")
        if after != before:
            write_text(path, after)
        print(f"{path}: {'changed' if after != before else 'unchanged'}")
    for path in () if given else draw(library):
        print(f"{path}: drawn")
    return 0


if __name__ == "__main__":
    sys.exit(main())
