"""Tables on a terminal, by rich where it is installed."""

from __future__ import annotations

from benchmarks.show.kinds import kind_of
from benchmarks.show.table import Record, Table


def show(record: Record) -> None:
    """Print the tables of a record, and what failed."""
    kind = kind_of(record)
    for table in kind.tables(record):
        show_table(table)
    for failure in kind.failures(record):
        print(f"refused or failed: {failure}", flush=True)


def show_table(table: Table) -> None:
    """Print one table."""
    try:
        from rich.console import Console
        from rich.table import Table as RichTable
    except ImportError:
        print(table.markdown(), flush=True)
        return
    made = RichTable(title=table.title, title_justify="left")
    for number, column in enumerate(table.header):
        made.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in table.rows:
        made.add_row(*row)
    console = Console()
    Console(width=None if console.is_terminal else 160).print(made)
