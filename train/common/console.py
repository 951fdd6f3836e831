"""What commands print: a console on which nothing that is shown can fail."""

from __future__ import annotations

from typing import Any

from rich.console import Console

FORGIVING = ("replace", "backslashreplace", "namereplace", "xmlcharrefreplace", "ignore")


def open_console(console: Console | None = None) -> Console:
    """`console`, or a new one, on which every text can be shown: `?` stands for what its encoding lacks.

    Python ends a program that prints a character which the encoding of the output lacks. A terminal or a pipe that is
    not UTF-8 is no reason to lose a run.

    Example:
        >>> import io
        >>> stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        >>> say(open_console(Console(file=stream)), "R² [/0.9] 日本")
        >>> stream.flush()
        >>> stream.buffer.getvalue()
        b'R? [/0.9] ??\\n'
    """
    console = console or Console()
    stream: Any = console.file
    if getattr(stream, "errors", None) not in FORGIVING and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
    return console


def say(console: Console, text: str) -> None:
    """Print a line as it is: values in it are never read as rich's markup, and long ones are not broken."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


__all__ = ["open_console", "say"]
