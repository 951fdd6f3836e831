"""The records of a folder, newest code first, and of which code each of their numbers is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.measure.record import ROOT
from benchmarks.measure.sources import SOURCES, content
from benchmarks.show.kinds import kind_of, read
from benchmarks.show.table import Number, Record, Table

RESULTS = ROOT / "benchmarks" / "results"
CHANGED = " †"  # the code that a number depends on is not the code that it was measured of, or nobody recorded which


@dataclass(frozen=True)
class Stored:
    """A record and where it lies: the path of its file below the folder, without the ending, and the job inside."""

    name: str
    record: Record

    @property
    def facts(self) -> dict[str, Any]:
        """Versions, commit, device."""
        return self.record.get("facts", {})

    @property
    def device(self) -> str:
        """The device's name."""
        return str(self.facts.get("gpu") or self.facts.get("device", "CPU"))

    @property
    def on(self) -> str:
        """`gpu` or `cpu`."""
        return "gpu" if "driver" in self.facts else "cpu"

    @property
    def commit(self) -> str:
        """What `git describe` said."""
        return str(self.facts.get("commit", "unknown"))

    def is_current(self, part: str) -> bool:
        """Whether the code that a part depends on is the present code.

        A record without digests is older than they are, and counts as old.
        """
        known = self.record.get("content", {}).get(part)
        return known is not None and part in SOURCES and known == content(part)

    def provenance(self, part: str) -> str:
        """Where a number comes from; marked where its code has changed since."""
        return f"`{self.name}`, {self.commit}{'' if self.is_current(part) else CHANGED}"

    def age(self, part: str) -> tuple[bool, str, str]:
        """Grows with newness: the present code before others, then by the commit's date, then by name."""
        return (self.is_current(part), str(self.facts.get("committed") or ""), self.name)


@dataclass(frozen=True)
class Library:
    """All records of a folder."""

    folder: Path = RESULTS

    @cached_property
    def stored(self) -> list[Stored]:
        """Every record, those inside of others too; records of a smoke test are left out."""
        found = []
        for path in sorted(self.folder.rglob("*.json")):
            where = path.parent.relative_to(self.folder)
            for name, record in read(path).items():
                if not record.get("smoke"):
                    found.append(Stored(str(where / name), record))
        return found

    def numbers(self, on: str) -> Iterator[tuple[Stored, dict[str, Number]]]:
        """Each record that was made on a `cpu` or a `gpu`, with its numbers by name."""
        yield from ((stored, numbers) for stored, numbers in self._numbers if stored.on == on)

    @cached_property
    def _numbers(self) -> list[tuple[Stored, dict[str, Number]]]:
        of = [(stored, kind_of(stored.record).numbers(stored.record)) for stored in self.stored]
        return [(stored, {number.name: number for number in numbers}) for stored, numbers in of]

    def tables(self, kind: str, part: str, on: str, *words: str) -> Iterator[tuple[Table, Stored]]:
        """Tables of one kind and part, newest code first; of those whose title has all `words` in it."""
        found = []
        for stored in self.stored:
            if stored.record["kind"] == kind and stored.on == on:
                tables = kind_of(stored.record).tables(stored.record)
                found += [
                    (table, stored)
                    for table in tables
                    if table.part == part and all(word in table.title for word in words)
                ]
        yield from sorted(found, key=lambda pair: pair[1].age(part), reverse=True)


__all__ = ["CHANGED", "RESULTS", "Library", "Stored"]
