"""What the demo's answers and trainings come to, as plain data for its report."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from cc_model.integrations.trainer import histogram
from train.common.modes import ENGLISH, MATRIX, OFF, VANILLA
from train.experiment.data import Data

GUESS = "guess"
MODES = (GUESS, VANILLA, OFF, MATRIX, ENGLISH)


def guesses(data: Data) -> list[str]:
    """For each question the most frequent training answer of its language and relation: what needs no knowledge."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in data.train:
        counts[row["language"], row["relation"]][row["output"]] += 1
    return [counts[row["language"], row["relation"]].most_common(1)[0][0] for row in data.questions]


def score(data: Data, correct: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Correct answers per language and mode, and the number of questions under `"questions"`; `"all"` is the sum."""
    table: dict[str, dict[str, int]] = {}
    for index, row in enumerate(data.questions):
        for key in (row["language"], "all"):
            line = table.setdefault(key, dict.fromkeys(("questions", *MODES), 0))
            line["questions"] += 1
            for mode in MODES:
                line[mode] += int(correct[mode][index])
    table["all"] = table.pop("all")
    return table


def samples(data: Data, answers: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """The first held-out question of each language, its relations by turns, with every mode's answer."""
    chosen: dict[tuple[str, str], int] = {}
    relations = sorted({row["relation"] for row in data.questions})
    languages = list(dict.fromkeys(row["language"] for row in data.questions))
    for number, language in enumerate(languages):
        for index, row in enumerate(data.questions):
            if row["language"] == language and row["relation"] == relations[number % len(relations)]:
                chosen.setdefault((language, row["relation"]), index)
    return [
        {
            "language": data.questions[index]["language"],
            "question": unicodedata.normalize("NFC", data.questions[index]["instruction"]),
            "expected": data.questions[index]["output"],
            **{mode: answers[mode][index] for mode in MODES},
        }
        for index in chosen.values()
    ]


def curves(log: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Steps, losses and decision histograms of a training, from Trainer's log."""
    entries = [entry for entry in log if "loss" in entry]
    return {
        "step": [entry["step"] for entry in entries],
        "loss": [entry["loss"] for entry in entries],
        "decisions": [shares for entry in entries if (shares := histogram(entry))],
    }


def layer_quality(report: Any) -> dict[str, Any]:
    """R² and cosines of a fit, overall and per layer."""

    def numbers(quality: Any) -> dict[str, float]:
        return {"r2": quality.r2, "cosine": quality.cosine, "cosine_before": quality.cosine_before}

    return {
        "pairs": report.pairs,
        "sample": report.sample,
        "overall": numbers(report.overall),
        "layers": [numbers(quality) for quality in report.layers],
    }


__all__ = ["GUESS", "MODES", "curves", "guesses", "layer_quality", "samples", "score"]
