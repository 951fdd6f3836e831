"""Records of `benchmarks.jobs.experiment`: how many questions each condition answered, by the way of answering."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean

from benchmarks.show.table import Kind, Number, Record, Table


def _shares(record: Record) -> dict[str, dict[str, list[float]]]:
    """By condition and way of answering, the share of correct answers of each seed; halves A and B apart."""
    found: dict[str, dict[str, list[float]]] = {}
    for result in record["results"]:
        modes = found.setdefault(result["condition"], {})
        for mode, of in result["modes"].items():
            for name, correct in _parts(mode, of["correct"], result.get("halves")):
                modes.setdefault(name, []).append(correct.count("1") / max(len(correct), 1))
    return found


def _parts(mode: str, correct: str, halves: str | None) -> Iterator[tuple[str, str]]:
    if halves is None:
        yield mode, correct
        return
    for half in "AB":
        yield f"{mode}, {half}", "".join(mark for mark, of in zip(correct, halves, strict=True) if of == half)


def tables(record: Record) -> Iterator[Table]:
    """One row per condition, one column per way of answering: the mean over seeds, and the seeds."""
    found = _shares(record)
    names = list(dict.fromkeys(mode for modes in found.values() for mode in modes))
    rows = []
    for condition, modes in found.items():
        cells = [f"{mean(modes[name]):.1%}".replace("%", " %") if name in modes else "–" for name in names]
        rows.append([condition, *cells, str(max(map(len, modes.values())))])
    title = f"{record['config']}, {record['facts'].get('device')}: correct answers"
    yield Table(title, ["condition", *names, "seeds"], rows, "experiment")


def numbers(record: Record) -> Iterator[Number]:
    """Shares of correct answers, the mean over seeds."""
    for condition, modes in _shares(record).items():
        for mode, values in modes.items():
            yield Number(f"{record['config']}, {condition}, {mode}, correct", mean(values), "experiment")


KIND = Kind(tables, numbers)
