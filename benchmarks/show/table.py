"""What every kind of record gives: tables of text, named numbers, plots, failures; and how numbers are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of text; `part` says which part of its record the numbers are of."""

    title: str
    header: list[str]
    rows: list[list[str]]
    part: str = ""

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.rows} - {len(self.header)}
        if widths:
            raise ValueError(f"rows: expected {len(self.header)} cells, as the header of {self.title!r}, got {widths}")

    def markdown(self) -> str:
        """As a Markdown table below its title.

        Example:
            >>> print(Table("Times", ["mode", "ms"], [["ours", "1.0"]]).markdown())
            **Times**
            <BLANKLINE>
            | mode | ms |
            | --- | --- |
            | ours | 1.0 |
        """
        lines = [" | ".join(self.header), " | ".join("---" for _ in self.header), *map(" | ".join, self.rows)]
        return (f"**{self.title}**\n\n" if self.title else "") + "\n".join(f"| {line} |" for line in lines)


@dataclass(frozen=True)
class Number:
    """One measured number: what it is of, and which part of the record it stands in."""

    name: str
    value: float
    part: str


def _no_plots(record: Record, folder: Path, prefix: str = "") -> list[Path]:
    return []


def _no_failures(record: Record) -> list[str]:
    return []


@dataclass(frozen=True)
class Kind:
    """How records of one kind are shown.

    Args:
        tables: of a record.
        numbers: every number of a record that two commits can be compared by.
        plots: writes them into a folder, below names that begin with a prefix; needs matplotlib.
        failures: what failed or was refused in a record, with the reason.
    """

    tables: Callable[[Record], Iterable[Table]]
    numbers: Callable[[Record], Iterable[Number]]
    plots: Callable[..., list[Path]] = _no_plots
    failures: Callable[[Record], list[str]] = _no_failures


def milliseconds(value: Mapping[str, Any]) -> str:
    """Median and quartiles of seconds, in milliseconds.

    Example:
        >>> milliseconds({"median": 0.002, "low": 0.001, "high": 0.003})
        '2.00 (1.00–3.00)'
    """
    return "{:.2f} ({:.2f}–{:.2f})".format(*(1e3 * value[name] for name in ("median", "low", "high")))


def ratio(value: Mapping[str, Any]) -> str:
    """Median and quartiles."""
    return "{:.3f} ({:.3f}–{:.3f})".format(*(value[name] for name in ("median", "low", "high")))


def mebibytes(value: int) -> str:
    """Bytes in MiB.

    Example:
        >>> mebibytes(3 * 2**30)
        '3,072.0'
    """
    return f"{value / 2**20:,.1f}"


def numbers_of(name: str, part: str, measured: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[Number]:
    """The numbers of one row under `keys`; of a spread its median.

    Example:
        >>> list(numbers_of("ours", "train", {"ratio": {"median": 1.5}, "peak": None}, ("ratio", "peak", "ops")))
        [Number(name='ours, ratio', value=1.5, part='train')]
    """
    for key in keys:
        value = measured.get(key)
        value = value.get("median") if isinstance(value, dict) else value
        if value is not None:
            yield Number(f"{name}, {key}", float(value), part)
