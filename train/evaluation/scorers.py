"""Scores of generated answers, for every script of the benchmarks.

    exact match   1 where the normalised answer is one of the accepted ones
    F1            2 P R / (P + R) over the multiset of common tokens, best over the accepted answers (as SQuAD's)
    ROUGE-L       F1 of the longest common subsequence of tokens, by the library rouge-score

All on normalised text (`normalised`) and on tokens that are words, or single characters in scripts that write no
spaces (`tokens`).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import regex

ARTICLES = regex.compile(r"\b(a|an|the)\b")
DECIMAL_ZEROS = regex.compile(r"(?<=\d)[.,٫]0{1,2}(?!\d)")
DROPPED = regex.compile(r"[\p{P}\p{S}\p{Cf}\u0640\u064B-\u065F\u0670]")  # Arabic: the stretching mark and vowel marks
SARA_AM = regex.compile(r"\u0E4D([\u0E48-\u0E4B]?)\u0E32")
UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")


def normalised(text: str, language: str = "") -> str:
    """Text in the form in which answers are compared.

    Unicode compatibility form (NFKC), lower case (case folding), digits of every script as 0-9, `3.0` as `3` (`3.000`
    may be three thousand); without punctuation, symbols, invisible marks, Arabic vowel and stretching marks, repeated
    spaces and, in English, articles. Other accents and tone marks are part of the letters and stay.

    Args:
        text: any text.
        language: code; `"en"` drops a, an and the.

    Example:
        >>> normalised("  The  Beatles! ", "en"), normalised("١٩٩٩"), normalised("３.0"), normalised("Ｑ（सं.)")
        ('beatles', '1999', '3', 'qसं')
    """
    text = SARA_AM.sub("\\1\u0e33", unicodedata.normalize("NFKC", text)).casefold()
    text = "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in text)
    text = DROPPED.sub("", DECIMAL_ZEROS.sub("", text))
    if language == "en":
        text = ARTICLES.sub(" ", text)
    return " ".join(text.split())


def tokens(text: str, language: str = "") -> list[str]:
    """Words of the normalised text; in scripts without spaces each character, with the marks on it, is one.

    Example:
        >>> tokens("東京は Tokyo です"), tokens("ที่ดี")
        (['東', '京', 'は', 'tokyo', 'で', 'す'], ['ที่', 'ดี'])
    """
    found: list[str] = []
    for word in normalised(text, language).split():
        run = ""
        for character in regex.findall(r"\X", word):
            if UNSPACED.match(character):
                found += [run, character] if run else [character]
                run = ""
            else:
                run += character
        found += [run] if run else []
    return found


def exact_match(answer: str, accepted: Sequence[str], language: str = "") -> float:
    """1.0 if the answer is one of the accepted ones after normalisation, else 0.0.

    Example:
        >>> exact_match("في عام ۱۹۹۹", ["في عام 1999"]), exact_match("1999", ["2000"])
        (1.0, 0.0)
    """
    return float(any(normalised(answer, language) == normalised(each, language) for each in accepted))


def f1(answer: str, accepted: Sequence[str], language: str = "") -> float:
    """The best token F1 over the accepted answers.

    Example:
        >>> round(f1("das rote Haus", ["ein rotes Haus", "rote Haus"]), 3)
        0.8
    """
    return _best(_f1, answer, accepted, language)


def _f1(answer: str, expected: str, language: str) -> float:
    given, wanted = tokens(answer, language), tokens(expected, language)
    if not given or not wanted:
        return float(given == wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted))


def rouge_l(answer: str, accepted: Sequence[str], language: str = "") -> float:
    """The best ROUGE-L F-measure over the accepted summaries, on the tokens of `tokens` without dropping articles.

    Example:
        >>> round(rouge_l("天気は晴れ", ["天気は雨"]), 3)
        0.667
    """
    return _best(lambda given, wanted, _: _rouge().score(wanted, given)["rougeL"].fmeasure, answer, accepted, language)


class _Tokenizer:
    """What rouge-score asks for a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return tokens(text)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Tokenizer())


def _best(score: Callable[[str, str, str], float], answer: str, accepted: Sequence[str], language: str) -> float:
    return max(score(answer, each, language) for each in accepted)


def answer_scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Exact match and F1 of a row's generated answer; `process_results` of the task files.

    Example:
        >>> answer_scores({"answers": ["3.0"], "language": "de"}, [" 3. "])
        {'f1': 1.0, 'exact_match': 1.0}
    """
    given = (results[0], doc["answers"], doc["language"])
    return {"f1": f1(*given), "exact_match": exact_match(*given)}


def summary_scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """ROUGE-L of a row's generated summary; `process_results` of the task files.

    Example:
        >>> summary_scores({"answers": ["eins zwei"], "language": "de"}, ["eins zwei"])
        {'rougeL': 1.0}
    """
    return {"rougeL": rouge_l(results[0], doc["answers"], doc["language"])}


__all__ = ["answer_scores", "exact_match", "f1", "normalised", "rouge_l", "summary_scores", "tokens"]
