"""Parallel questions and answers in 22 languages, built from CLDR by way of Babel. Real facts, and no network.

    python -m train.data.cldr --out data/cldr

Four relations, two of them the reverse (the mirror) of the other two:

| relation | subject → object | asked when |
|---|---|---|
| `currency` | territory → currency | the territory has one current currency |
| `territory_of_currency` | currency → territory | one territory has it as a current currency |
| `official_language` | territory → language | the territory has one language with national status |
| `territory_of_language` | language → territory | one territory gives it status, and that status is national |

So every question has one right answer; `train.data.facts` defines the terms. Where a language has no name of its own
for the subject or the object, or the name shows the code, the question is left out in that language; without an English
name it is left out in all.

A row holds strings only:

| column | meaning |
|---|---|
| `instruction`, `output` | question and answer in `language` |
| `instruction_en` | the same question in English; `""` for English rows, which have no pivot and train plainly |
| `language`, `relation` | `"fr"`, `"currency"` |
| `subject`, `object` | CLDR codes of what is asked about and of the answer: `"JP"`, `"JPY"` |
| `fact_id` | `relation/subject`: `"currency/JP"`; together with `language` it names one row |

The split asks whether what was learned in English is known in another language. A pair (fact, language) in `held_out`
is trained on in English, but not in that language, neither forwards nor in its mirror, which would give the answer
away. In each language the same share of facts is held out, the ones with the lowest hash of (seed, language, fact):
leaving out a language or a relation moves no other row.

Some held-out answers are words that `train` never shows in that language: where a currency has one territory, its name
occurs in the held-out fact and nowhere else. Only a model that knows the language from elsewhere can give those, so a
small model is measured on the rows whose `(language, output)` occurs in `train`, about half of them.
"""

import argparse
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import babel

from train.common.console import open_console, say
from train.data.facts import RELATIONS, display_name, facts, tables
from train.data.questions import QUESTIONS, ask

if TYPE_CHECKING:
    from datasets import DatasetDict

Row = dict[str, str]

LANGUAGES: tuple[str, ...] = tuple(QUESTIONS)
COLUMNS = ("instruction", "instruction_en", "output", "language", "relation", "subject", "object", "fact_id")
SPLITS = ("train", "held_out")


def _row(language: str, relation: str, subject: str, target: str) -> Row | None:
    """The row of one fact in one language, or None where a name is missing."""
    asked, answered = tables(relation)
    name, answer = display_name(language, asked, subject), display_name(language, answered, target)
    english_name = display_name("en", asked, subject)
    if name is None or answer is None or english_name is None or display_name("en", answered, target) is None:
        return None
    return {
        "instruction": ask(language, relation, name),
        "instruction_en": "" if language == "en" else ask("en", relation, english_name),
        "output": answer,
        "language": language,
        "relation": relation,
        "subject": subject,
        "object": target,
        "fact_id": f"{relation}/{subject}",
    }


@cache
def _language_rows(language: str) -> tuple[Row, ...]:
    """Every row of a language, ordered by relation and subject."""
    rows = (_row(language, relation, *fact) for relation in RELATIONS for fact in facts(relation))
    return tuple(row for row in rows if row is not None)


def _link(row: Row) -> tuple[str, str, str]:
    """What a row and its mirror have in common: kind, territory, currency or language."""
    kind, reverse = row["relation"].split("_")[-1], row["relation"].startswith("territory_of_")
    return (kind, row["object"], row["subject"]) if reverse else (kind, row["subject"], row["object"])


def _held_out_links(language: str, fraction: float, seed: int) -> set[tuple[str, str, str]]:
    """The share of a language's facts with the lowest hashes; none in English."""
    if language == "en":
        return set()
    links = {_link(row) for row in _language_rows(language)}
    ranked = sorted(links, key=lambda link: hashlib.sha256("|".join([str(seed), language, *link]).encode()).digest())
    return set(ranked[: round(fraction * len(ranked))])


def _checked(argument: str, values: Sequence[str], allowed: Sequence[str]) -> list[str]:
    """The values without repetitions, or an error that names the argument and what is allowed."""
    if isinstance(values, str):
        raise TypeError(f"{argument}: expected a sequence of strings, got the string {values!r}; use [{values!r}]")
    chosen = list(dict.fromkeys(values))
    unknown = [value for value in chosen if value not in allowed]
    if unknown or not chosen:
        raise ValueError(f"{argument}: expected one or more of {', '.join(allowed)}; got {unknown or 'none'}")
    return chosen


def build_rows(
    languages: Sequence[str] = LANGUAGES,
    relations: Sequence[str] = RELATIONS,
    held_out: float = 0.1,
    seed: int = 0,
) -> dict[str, list[Row]]:
    """Build the rows of both splits, ordered by language (as given), relation and subject.

    Args:
        languages: codes from `LANGUAGES`; must contain `"en"` when anything is held out, because a held-out fact is
            one that was seen in English.
        relations: names from `RELATIONS`.
        held_out: share in [0, 1) of the facts that is held out in each language but English; a fact and its mirror
            count as one. The share is taken over all relations, also when only some of them are asked for.
        seed: another seed holds out other pairs.

    Returns:
        `{"train": rows, "held_out": rows}`, the columns as in the module docstring.

    Raises:
        TypeError: a string where a sequence of strings is expected.
        ValueError: an unknown or empty language or relation, `held_out` out of range, or English missing.

    >>> rows = build_rows(languages=["en", "fr"], relations=["currency"], held_out=0.0)["train"]
    >>> row = next(r for r in rows if r["language"] == "fr" and r["subject"] == "JP")
    >>> row["instruction"].splitlines()
    ['Quelle est la monnaie officielle de ce pays ou territoire ?', 'Japon']
    >>> row["output"], row["object"], row["fact_id"]
    ('yen japonais', 'JPY', 'currency/JP')
    >>> row["instruction_en"].splitlines()
    ['What is the official currency of this country or territory?', 'Japan']
    """
    languages = _checked("languages", languages, LANGUAGES)
    relations = _checked("relations", relations, RELATIONS)
    if isinstance(held_out, bool) or not isinstance(held_out, int | float) or not 0 <= held_out < 1:
        raise ValueError(f"held_out: expected a number in [0, 1), got {held_out!r}")
    if held_out > 0 and "en" not in languages:
        raise ValueError(f"languages: expected 'en' among them when held_out > 0, got {languages}; or pass held_out=0")
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for language in languages:
        unseen = _held_out_links(language, held_out, seed)
        for row in _language_rows(language):
            if row["relation"] in relations:
                splits["held_out" if _link(row) in unseen else "train"].append(dict(row))
    return splits


def build_dataset(
    languages: Sequence[str] = LANGUAGES,
    relations: Sequence[str] = RELATIONS,
    held_out: float = 0.1,
    seed: int = 0,
) -> "DatasetDict":
    """Build the same rows as `build_rows` as a `datasets.DatasetDict` with the splits `train` and `held_out`.

    Every column is a string column, also in an empty split. Arguments and errors are those of `build_rows`.

    >>> build_dataset(languages=["en", "ja"])["train"].column_names[:3]
    ['instruction', 'instruction_en', 'output']
    """
    from datasets import Dataset, DatasetDict, Features, Value

    features = Features({column: Value("string") for column in COLUMNS})
    splits = build_rows(languages, relations, held_out, seed)
    columns = {split: {column: [row[column] for row in rows] for column in COLUMNS} for split, rows in splits.items()}
    return DatasetDict({split: Dataset.from_dict(data, features=features) for split, data in columns.items()})


def write_jsonl(
    directory: str | os.PathLike[str], splits: Mapping[str, Sequence[Row]] | None = None
) -> dict[str, Path]:
    """Write `<split>.jsonl` (UTF-8, one object per line) for each split and return the paths.

    `splits` is the result of `build_rows`, by default that of `build_rows()`. The directory is made if it is missing.
    A file is written beside its place and moved there when it is complete, so a reader never sees half of one.

    Raises:
        NotADirectoryError: `directory`, or a part of its path, is a file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = write_jsonl(folder, build_rows(languages=["en", "sw"]))
    ...     sorted(path.name for path in paths.values())
    ['held_out.jsonl', 'train.jsonl']
    """
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"directory: expected a folder or a path for a new one, got {folder}") from error
    paths = {}
    for split, rows in (build_rows() if splits is None else splits).items():
        paths[split] = folder / f"{split}.jsonl"
        _write_atomically(paths[split], "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return paths


def _write_atomically(path: Path, text: str) -> None:
    """Write to a temporary file in the same folder (a rename is atomic only within one file system), then move it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files and print the number of rows per language."""
    open_console()  # for --help
    parser = argparse.ArgumentParser(
        prog="python -m train.data.cldr",
        description="Write parallel questions about currencies and official languages (facts and names from CLDR) as "
        "train.jsonl and held_out.jsonl. A held-out question is in train in English only.",
    )
    listed = ", ".join
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the two files; made if missing")
    parser.add_argument(
        "--languages", nargs="+", default=LANGUAGES, metavar="CODE", help=f"default: all of {listed(LANGUAGES)}"
    )
    parser.add_argument(
        "--relations", nargs="+", default=RELATIONS, metavar="NAME", help=f"default: all of {listed(RELATIONS)}"
    )
    parser.add_argument(
        "--held-out", type=float, default=0.1, metavar="P", help="share of facts per language, in [0, 1); default: 0.1"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed holds out other facts; default: 0")
    options = parser.parse_args(arguments)
    try:
        splits = build_rows(options.languages, options.relations, options.held_out, options.seed)
        paths = write_jsonl(options.out, splits)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    _print_counts(splits, paths)


def _print_counts(splits: Mapping[str, Sequence[Row]], paths: Mapping[str, Path]) -> None:
    from rich.table import Table

    counts = {split: Counter(row["language"] for row in rows) for split, rows in splits.items()}
    table = Table("language", *splits, title=f"CLDR of Babel {babel.__version__}", show_footer=True)
    table.columns[0].footer = "all"
    for column, split in zip(table.columns[1:], splits, strict=True):
        column.justify = "right"
        column.footer = str(counts[split].total())
    for language in dict.fromkeys(row["language"] for rows in splits.values() for row in rows):
        table.add_row(language, *(str(counts[split][language]) for split in splits))
    console = open_console()
    console.print(table)
    for path in paths.values():
        say(console, f"wrote {path}")


if __name__ == "__main__":
    main()

__all__ = ["COLUMNS", "LANGUAGES", "RELATIONS", "SPLITS", "build_dataset", "build_rows", "main", "write_jsonl"]
