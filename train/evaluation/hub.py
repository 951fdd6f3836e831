"""Rows of the benchmarks from the Hugging Face hub, written as the paper's prompts.

| benchmark | data set | licence |
|---|---|---|
| XNLI | `facebook/xnli`, test | CC BY-NC 4.0 |
| XStoryCloze | `juletxara/xstory_cloze`, eval | CC BY-SA 4.0 |
| MMMLU | `openai/MMMLU` and, for English, `cais/mmlu`, test | MIT |
| XQuAD | `google/xquad`, validation | CC BY-SA 4.0 |
| MKQA | `apple/mkqa`, train (the only split) | CC BY 3.0 |
| XLSum | `csebuetnlp/xlsum`, test | CC BY-NC-SA 4.0 |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from datasets import load_dataset

from train.evaluation.benchmarks import known, languages_of, prompts

Raw = Mapping[str, Any]
CONVERTED = "refs/convert/parquet"  # the hub's own conversion of data sets that are published as a loading script
UNANSWERABLE = (1, 2, "long_answer", "unanswerable")  # MKQA's answer types without a text, as numbers or names


class Source(NamedTuple):
    """Where a benchmark is on the hub, and how a raw row becomes the fields of its prompt and its answers."""

    path: str
    split: str
    config: Callable[[str], str]
    fields: Callable[[Raw, str], dict[str, str]]
    answers: Callable[[Raw, str], list[str]]


def _named(template: str, **names: str) -> Callable[[str], str]:
    return lambda language: names.get(language) or template.format(language)


def _story(raw: Raw, language: str) -> dict[str, str]:
    story = "".join(raw[f"input_sentence_{number}"] for number in range(1, 5))  # the paper puts no space between
    return {"story": story, "first": raw["sentence_quiz1"], "second": raw["sentence_quiz2"]}


def _question(raw: Raw, language: str) -> dict[str, str]:
    if language == "en":  # cais/mmlu
        return {"question": raw["question"], **dict(zip("abcd", raw["choices"]))}
    return {"question": raw["Question"], **{letter.lower(): str(raw[letter]) for letter in "ABCD"}}


def _letter(raw: Raw, language: str) -> list[str]:
    return ["ABCD"[raw["answer"]] if language == "en" else raw["Answer"]]


def _mkqa_language(language: str) -> str:
    return "zh_cn" if language == "zh" else language


def _mkqa_answers(raw: Raw, language: str) -> list[str]:
    given = [entry for entry in raw["answers"][_mkqa_language(language)] if entry["type"] not in UNANSWERABLE]
    texts = [text for entry in given for text in (entry["text"], *(entry.get("aliases") or []))]
    return list(dict.fromkeys(text for text in texts if text))


_MMMLU = {"bn": "BN_BD", "es": "ES_LA", "hi": "HI_IN", "id": "ID_ID", "ko": "KO_KR", "pt": "PT_BR", "sw": "SW_KE"}
_XLSUM = {"ar": "arabic", "en": "english", "fr": "french", "hi": "hindi", "id": "indonesian", "ru": "russian"}

SOURCES = {
    "xnli": Source(
        *("facebook/xnli", "test", _named("{}")),
        lambda raw, language: {"premise": raw["premise"], "hypothesis": raw["hypothesis"]},
        lambda raw, language: [str(raw["label"] + 1)],  # entailment, neutral, contradiction, as in the prompt
    ),
    "xstorycloze": Source(
        *("juletxara/xstory_cloze", "eval", _named("{}"), _story),
        lambda raw, language: [str(raw["answer_right_ending"])],
    ),
    "mmmlu": Source(
        *("openai/MMMLU", "test", _named("{}", ar="AR_XY", yo="YO_NG", en="all", **_MMMLU), _question, _letter)
    ),
    "xquad": Source(
        *("google/xquad", "validation", _named("xquad.{}")),
        lambda raw, language: {"context": raw["context"], "question": raw["question"]},
        lambda raw, language: list(dict.fromkeys(raw["answers"]["text"])),
    ),
    "mkqa": Source(
        *("apple/mkqa", "train", lambda language: "mkqa"),
        lambda raw, language: {"question": raw["queries"][_mkqa_language(language)]},
        _mkqa_answers,
    ),
    "xlsum": Source(
        *("csebuetnlp/xlsum", "test", _named("{}", sw="swahili", tr="turkish", ur="urdu", vi="vietnamese", **_XLSUM)),
        lambda raw, language: {"title": raw["title"], "text": raw["text"]},
        lambda raw, language: [raw["summary"]],
    ),
}


def hub_rows(benchmark: str, language: str) -> list[dict[str, Any]]:
    """All rows of a benchmark in one language: `id, language, prompt, answer`. Rows without an answer are left out.

    Raises:
        ValueError: the paper does not evaluate this language, or the data could not be loaded.
    """
    if language not in languages_of(known(benchmark)):
        raise ValueError(f"language: expected one of {', '.join(languages_of(benchmark))}, got {language!r}")
    source = SOURCES[benchmark]
    path = "cais/mmlu" if (benchmark, language) == ("mmmlu", "en") else source.path
    return rows_from(benchmark, language, _download(path, source.config(language), source.split))


def rows_from(benchmark: str, language: str, raw: Iterable[Raw]) -> list[dict[str, Any]]:
    """Raw rows of the hub's data set as prompts with answers.

    Example:
        >>> raw = [{"premise": "Es regnet.", "hypothesis": "Es ist nass.", "label": 0}]
        >>> rows_from("xnli", "en", raw)[0]["prompt"][:46], rows_from("xnli", "en", raw)[0]["answer"]
        ('Premise: Es regnet.\\nHypothesis: Es ist nass.\\n\\n', ['1'])
    """
    source, prompt = SOURCES[benchmark], prompts()[benchmark][language]
    rows = []
    for number, row in enumerate(raw):
        answers = source.answers(row, language)
        if answers:
            text = prompt.format(**source.fields(row, language))
            rows.append({"id": number, "language": language, "prompt": text, "answer": answers})
    return rows


def _download(path: str, config: str, split: str) -> Iterable[Raw]:
    try:
        try:
            return load_dataset(path, config, split=split)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            return load_dataset(path, config, split=split, revision=CONVERTED)
    except Exception as error:  # the hub client raises errors of many libraries
        raise ValueError(
            f"data: {path} ({config}, {split}) could not be loaded from the hub: {error}; --data reads local files"
        ) from error


__all__ = ["SOURCES", "hub_rows", "rows_from"]
