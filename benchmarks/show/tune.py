"""Records of `benchmarks.tune`: every candidate of a block size beside the one that the heuristic chooses."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.show.table import Kind, Number, Record, Table


def _cases(record: Record) -> Iterator[tuple[str, str, list[Record]]]:
    """Knob, case, and the rows of its candidates, the heuristic's first."""
    cases: dict[tuple[str, str], list[Record]] = {}
    for row in record["rows"]:
        cases.setdefault((row["knob"], row["case"]), []).append(row)
    yield from ((knob, case, rows) for (knob, case), rows in cases.items())


def _time(row: Record) -> float:
    return row["us"]["median"] if "us" in row else float("inf")


def tables(record: Record) -> Iterator[Table]:
    """One row per case: the heuristic's time and the best candidate's."""
    rows = []
    for knob, case, candidates in _cases(record):
        fastest = min(candidates, key=_time)
        sizes = ", ".join(f"{name} {value}" for name, value in fastest["candidate"].items())
        rows.append([knob, case, f"{_time(candidates[0]):.2f}", f"{_time(fastest):.2f}", sizes])
    title = f"Block sizes, {record['facts'].get('device', 'unknown device')}"
    yield Table(title, ["knob", "case", "chosen µs", "best µs", "best candidate"], rows, "tune")


def numbers(record: Record) -> Iterator[Number]:
    """Microseconds of the heuristic's choice and of the best candidate."""
    for knob, case, candidates in _cases(record):
        yield Number(f"{knob}, {case}, chosen_us", _time(candidates[0]), "tune")
        yield Number(f"{knob}, {case}, best_us", min(map(_time, candidates)), "tune")


KIND = Kind(tables, numbers)
