"""The rows of a benchmark in one language, from a local file or the hub, as lm-eval reads them.

A local file `<benchmark>.jsonl` has one object a line (`train.common.files`):

| field | |
|---|---|
| `language` | code, such as `zh` |
| `id` | number or text |
| `prompt` | the whole prompt |
| `answer` | the right choice (`"2"`, `"B"`), the answer, or a list of accepted answers |
| `prompt_en`, `benchmark` | may be there; not read |
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets import Dataset

from cc_model.data.encoding import check_unicode
from train.common.files import read_records
from train.evaluation.benchmarks import BENCHMARKS, known
from train.evaluation.hub import hub_rows

Row = Mapping[str, Any]


def load(
    benchmark: str, language: str, data: str | None = None, limit: int | None = None, **_: Any
) -> dict[str, Dataset]:
    """The split `test` for the task files: columns `id, language, prompt, answers, choices, label`.

    Args:
        benchmark: a key of `BENCHMARKS`.
        language: its code.
        data: folder with `<benchmark>.jsonl`; None for the hub.
        limit: keep the first rows only.

    Raises:
        ValueError: the file or its rows are not as described above, or there are none in this language.
    """
    rows = local_rows(benchmark, language, data) if data else hub_rows(known(benchmark), language)
    return {"test": Dataset.from_list([prepared(benchmark, row) for row in rows[:limit]])}


def local_rows(benchmark: str, language: str, data: str) -> list[Row]:
    """The rows of one language from `<data>/<benchmark>.jsonl`, checked."""
    path = Path(data).expanduser() / f"{known(benchmark)}.jsonl"
    if not path.is_file():
        raise ValueError(f"data: expected a file {path.name} in {data!r}, found none")
    stat = path.stat()
    rows = [row for row in _read(path, stat.st_mtime_ns, stat.st_size) if row["language"] == language]
    if not rows:
        raise ValueError(f"data: expected rows with language {language!r} in {path.name}, found none")
    return rows


@lru_cache(maxsize=8)
def _read(path: Path, changed: int, size: int) -> list[Row]:
    return [checked(record.row, f"{path.name}, {record.where}") for record in read_records(path, "data")]


def checked(row: dict[str, Any], where: str) -> Row:
    """A row of a file, with every field of the right type."""
    for field in ("language", "prompt"):
        if not isinstance(row.get(field), str) or not row[field]:
            raise ValueError(f"data: expected text in field {field!r} of {where}, got {row.get(field)!r}")
    if not isinstance(row.get("id"), str | int):
        raise ValueError(f"data: expected a number or text in field 'id' of {where}, got {row.get('id')!r}")
    answers = _answers(row.get("answer"))
    if not answers or not all(isinstance(answer, str) and answer for answer in answers):
        raise ValueError(
            f"data: expected text or a list of texts in field 'answer' of {where}, got {row.get('answer')!r}"
        )
    for field, texts in {"id": [str(row["id"])], "prompt": [row["prompt"]], "answer": answers}.items():
        for text in texts:
            check_unicode(text, f"data: field {field!r} of {where}")
    return row


def prepared(benchmark: str, row: Row) -> dict[str, Any]:
    """A row with the columns that the task files name; `label` is the index of the right choice, −1 without choices.

    Raises:
        ValueError: the answer is not among the choices.

    Example:
        >>> prepared("xstorycloze", {"id": 7, "language": "en", "prompt": "...", "answer": "2"})
        {'id': '7', 'language': 'en', 'prompt': '...', 'answers': ['2'], 'choices': ['1', '2'], 'label': 1}
    """
    choices, answers = BENCHMARKS[benchmark].choices, _answers(row["answer"])
    if choices and (len(answers) != 1 or answers[0] not in choices):
        raise ValueError(f"answer: expected one of {', '.join(choices)} in row {row['id']}, got {row['answer']!r}")
    return {
        "id": str(row["id"]),
        "language": row["language"],
        "prompt": row["prompt"],
        "answers": list(dict.fromkeys(answers)),
        "choices": list(choices),
        "label": choices.index(answers[0]) if choices else -1,
    }


def _answers(answer: Any) -> list[Any]:
    return answer if isinstance(answer, list) else [answer]


__all__ = ["load", "local_rows", "prepared"]
