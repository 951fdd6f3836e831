"""What the benchmarks are: languages, prompts, choices, metrics. Data only."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Args:
        title: its published name.
        metrics: what is reported, each in [0, 1]; the first is the one that is compared.
        choices: the answers to choose from; empty where the answer is generated.
    """

    title: str
    metrics: tuple[str, ...]
    choices: tuple[str, ...] = ()


BENCHMARKS = {
    "xnli": Benchmark("XNLI", ("acc",), ("1", "2", "3")),
    "xstorycloze": Benchmark("XStoryCloze", ("acc",), ("1", "2")),
    "mmmlu": Benchmark("MMMLU", ("acc",), ("A", "B", "C", "D")),
    "xquad": Benchmark("XQuAD", ("f1", "exact_match")),
    "mkqa": Benchmark("MKQA", ("f1", "exact_match")),
    "xlsum": Benchmark("XLSum", ("rougeL",)),
}
METRIC_NAMES = {"acc": "accuracy", "f1": "F1", "exact_match": "exact match", "rougeL": "ROUGE-L"}


@cache
def prompts() -> dict[str, dict[str, str]]:
    """The paper's prompt for each benchmark and language, with fields such as `{question}`.

    Source: the prompts of the published CC-Tuning repository (MIT licence).

    Example:
        >>> prompts()["mkqa"]["ja"].format(question="日本の首都は？")
        '次の質問に答えてください。\\n\\n日本の首都は？\\n\\nあなたの答え：'
    """
    return json.loads((Path(__file__).parent / "prompts.json").read_text(encoding="utf-8"))


def languages_of(benchmark: str) -> list[str]:
    """The ten languages in which the paper evaluates a benchmark.

    Example:
        >>> languages_of("xlsum")
        ['ar', 'en', 'fr', 'hi', 'id', 'ru', 'sw', 'tr', 'ur', 'vi']
    """
    return list(prompts()[known(benchmark)])


def known(benchmark: str) -> str:
    """`benchmark` itself.

    Raises:
        ValueError: it is none of `BENCHMARKS`.
    """
    if benchmark not in BENCHMARKS:
        raise ValueError(f"benchmarks: expected some of {', '.join(BENCHMARKS)}, got {benchmark!r}")
    return benchmark


def chosen(benchmarks: Iterable[str], languages: Iterable[str] | None = None) -> list[tuple[str, str]]:
    """`(benchmark, language)` of every task that is asked for.

    Raises:
        ValueError: an unknown benchmark, or a language that none of them has.

    Example:
        >>> chosen(["xnli", "mkqa"], ["ja", "zh"])
        [('xnli', 'zh'), ('mkqa', 'ja'), ('mkqa', 'zh')]
    """
    pairs = [(benchmark, language) for benchmark in benchmarks for language in languages_of(benchmark)]
    if languages is None:
        return pairs
    wanted = list(languages)
    have = dict.fromkeys(language for _, language in pairs)
    unknown = [language for language in wanted if language not in have]
    if unknown:
        raise ValueError(f"languages: expected some of {', '.join(have)}, got {unknown[0]!r}")
    return [(benchmark, language) for benchmark, language in pairs if language in wanted]


__all__ = ["BENCHMARKS", "METRIC_NAMES", "Benchmark", "chosen", "known", "languages_of", "prompts"]
