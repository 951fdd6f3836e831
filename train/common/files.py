"""Files of rows, read and written in one way by all commands.

| suffix | rows |
|---|---|
| `.jsonl`, `.json` | one JSON object a line, or one JSON array of objects |
| `.csv` | a row a line under a line of column names; every cell is text, as it stands there |
| `.parquet` | as its columns are |
| any other, where plain text is accepted | one prompt a line |

Text is UTF-8, with or without a byte order mark. A line ends at `\\n` or `\\r\\n` only; U+2028, U+2029 and U+0085, line
breaks for Unicode, are ordinary characters of a text.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

JSON, PARQUET, CSV = (".json", ".jsonl"), (".parquet",), (".csv",)
SUFFIXES = (*JSON, *PARQUET, *CSV)


class Record(NamedTuple):
    """A row, and where it stands: "line 3", "entry 3" or "row 3", counted from 1."""

    where: str
    row: dict[str, Any]


def read_records(path: str | os.PathLike[str], argument: str, text_column: str | None = None) -> list[Record]:
    """The rows of a file.

    Args:
        path: of the file.
        argument: the option that named it, for messages.
        text_column: with it a file with another suffix is text, and every line that is not blank a row of this column.

    Raises:
        ValueError: there is no such file, its suffix is none of the above, or its content is not what the suffix says;
            the message names the line.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "rows.csv"
        >>> _ = path.write_text("instruction,output\\nLand?,NA\\n")
        >>> read_records(path, "file")
        [Record(where='line 2', row={'instruction': 'Land?', 'output': 'NA'})]
    """
    file = Path(path).expanduser()
    suffix = file.suffix.lower()
    if not file.is_file():
        raise ValueError(f"{argument}: found no file {str(path)!r}")
    if suffix in PARQUET:
        return list(_parquet(file, argument))
    if suffix not in SUFFIXES and text_column is None:
        raise ValueError(f"{argument}: expected a file of type {', '.join(SUFFIXES)}, got {file.name!r}")
    lines = _lines(file, argument)
    if suffix in CSV:
        return list(_csv("\n".join(lines), file, argument))
    lines = [line.removesuffix("\r") for line in lines]
    if suffix in JSON:
        starts = next((line for line in lines if line.strip()), "").lstrip()
        array = _array("\n".join(lines), file, argument) if starts.startswith("[") else None
        return list(_json_lines(lines, file, argument)) if array is None else array
    return [Record(f"line {n}", {str(text_column): line}) for n, line in enumerate(lines, 1) if line.strip()]


def _lines(file: Path, argument: str) -> list[str]:
    """The lines of a UTF-8 file without `\\n` and without the byte order mark."""
    lines = []
    for number, line in enumerate(file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{argument}: expected UTF-8 text, line {number} of {file} is not: {error}") from None
    return lines


def _json_lines(lines: Iterable[str], file: Path, argument: str) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{argument}: expected one JSON object per line, line {number} of {file} is"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            at = f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else error
            raise ValueError(f"{where} not: {line[:40]!r} ({at})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where} {line[:40]!r}")
        yield Record(f"line {number}", row)


def _array(text: str, file: Path, argument: str) -> list[Record] | None:
    """The rows of a JSON array; None where the file holds further lines, so that it is none."""
    try:
        rows, end = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{argument}: expected a JSON array of objects in {file}: {error}") from None
    if text.lstrip()[end:].strip():
        return None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{argument}: expected a JSON array of objects, entry {number} of {file} is {row!r:.40}")
    return [Record(f"entry {number}", row) for number, row in enumerate(rows, start=1)]


def _csv(text: str, file: Path, argument: str) -> Iterator[Record]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a text may be longer than the 128 KiB that csv allows
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] = []
    try:
        for cells in reader:
            if not cells:
                continue
            if not columns:
                columns = cells
                if len(set(columns)) < len(columns):
                    raise ValueError(f"{argument}: expected different names in the first line of {file}, got {columns}")
                continue
            if len(cells) != len(columns):
                raise ValueError(
                    f"{argument}: expected {len(columns)} cells ({', '.join(columns)}) in line {reader.line_num} of "
                    f"{file}, got {len(cells)}"
                )
            yield Record(f"line {reader.line_num}", dict(zip(columns, cells)))
    except csv.Error as error:
        raise ValueError(f"{argument}: line {reader.line_num} of {file} is no CSV: {error}") from None


def _parquet(file: Path, argument: str) -> Iterator[Record]:
    from pyarrow import ArrowException, parquet  # installed with datasets, which not every command needs

    try:
        rows = parquet.read_table(file).to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{argument}: {file} is no Parquet file: {error}") from None
    return (Record(f"row {number}", row) for number, row in enumerate(rows, start=1))


def read_yaml(path: str | os.PathLike[str], argument: str = "config") -> dict[str, Any]:
    """The entries of a YAML file.

    Raises:
        ValueError: there is no such file, it is no UTF-8 or no YAML, or holds something else than entries.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "config.yaml"
        >>> _ = path.write_text("max_steps: 10\\n")
        >>> read_yaml(path)
        {'max_steps': 10}
    """
    if not Path(path).is_file():
        raise ValueError(f"{argument}: expected a YAML file, found no {path}")
    text = "\n".join(_lines(Path(path), argument))
    try:
        entries = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # a date that is none is a ValueError
        raise ValueError(f"{argument}: {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{argument}: expected `name: value` lines in {path}, got {type(entries).__name__}")
    return entries


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    r"""Rows as JSON, one a line, which `read_records` reads back.

    Texts stay readable. A row with half of a surrogate pair, which no file can hold, is written with escapes.

    Example:
        >>> print(json_lines([{"output": "日本"}, {"output": "\ud800"}]), end="")
        {"output": "日本"}
        {"output": "\ud800"}
    """
    lines = []
    for row in rows:
        line = json.dumps(row, ensure_ascii=False)
        try:
            line.encode("utf-8")
        except UnicodeEncodeError:
            line = json.dumps(row)
        lines.append(line + "\n")
    return "".join(lines)


def output_folder(folder: str | os.PathLike[str], argument: str) -> Path:
    """`folder`, made where it is missing, and shown to be writable: before the work whose result goes there.

    Raises:
        ValueError: a file stands in its place, or nothing can be written there.

    Example:
        >>> output_folder(tempfile.mkdtemp(), "out").is_dir()
        True
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".writing-"):
            pass
    except OSError as error:
        raise ValueError(f"{argument}: cannot write into the folder {str(folder)!r}: {error}") from None
    return path


def output_file(file: str | os.PathLike[str], argument: str) -> Path:
    """`file`, whose folder is made and shown to be writable.

    Raises:
        ValueError: it is a folder, or nothing can be written there.

    Example:
        >>> output_file(Path(tempfile.mkdtemp()) / "new" / "answers.jsonl", "out").name
        'answers.jsonl'
    """
    path = Path(file)
    if path.is_dir():
        raise ValueError(f"{argument}: expected a file, {str(file)!r} is a folder")
    output_folder(path.parent, argument)
    return path


__all__ = ["SUFFIXES", "Record", "json_lines", "output_file", "output_folder", "read_records", "read_yaml"]
