"""What reports are made of: a Markdown table and a figure, each written in one way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """The lines of a Markdown table.

    Args:
        head: names of the columns.
        rows: cells, which may hold any text.
        left: so many columns are aligned on the left, the others on the right.

    Example:
        >>> markdown_table(("name", "share"), [("a|b", "12 %"), ("c", "")])
        ['| name | share |', '| --- | ---: |', '| a\\\\|b | 12 % |', '| c |   |']
    """
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    lines = [head, rule, *[[_cell(cell) for cell in row] for row in rows]]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|") or " "


def subplots(rows: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure of a size in inches, and its axes row by row."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)
    return figure, list(axes.flat)


def save_figure(figure: Any, path: Path, dpi: int = 140) -> None:
    """Write a figure as PNG, whole or not at all, and close it."""
    partial = path.with_name(f".writing-{path.name}")
    try:
        figure.savefig(partial, dpi=dpi, format="png")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        plt.close(figure)


__all__ = ["markdown_table", "save_figure", "subplots"]
