"""What the demo's answers and trainings come to, as plain data for its report."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from cc_model.integrations.trainer import histogram
from train.common.modes import ENGLISH, MATRIX, VANILLA
from train.experiment.data import Data

GUESS, STUDENT = "guess", "student"
COLUMNS = (GUESS, VANILLA, ENGLISH, STUDENT)  # of the tables of accuracy
MODES = (*COLUMNS, MATRIX)


def guesses(data: Data) -> list[str]:
    """For each question the most frequent training answer of its language and relation: what needs no knowledge."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in data.train:
        counts[row["language"], row["relation"]][row["output"]] += 1
    return [counts[row["language"], row["relation"]].most_common(1)[0][0] for row in data.questions]


def score(data: Data, correct: Mapping[str, str]) -> dict[str, dict[str, dict[str, int]]]:
    """For each half, correct answers per language and mode, and the number of questions; `"all"` is the sum."""
    halves: dict[str, dict[str, dict[str, int]]] = {"A": {}, "B": {}}
    for index, (row, half) in enumerate(zip(data.questions, data.halves, strict=True)):
        for key in (row["language"], "all"):
            line = halves[half].setdefault(key, dict.fromkeys(("questions", *MODES), 0))
            line["questions"] += 1
            for mode in MODES:
                line[mode] += int(correct[mode][index])
    for table in halves.values():
        table["all"] = table.pop("all", dict.fromkeys(("questions", *MODES), 0))
    return halves


def samples(data: Data, answers: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """The first question of half A in each language, its relations by turns, with every mode's answer."""
    chosen: dict[tuple[str, str], int] = {}
    asked = [index for index, half in enumerate(data.halves) if half == "A"]
    relations = sorted({data.questions[index]["relation"] for index in asked})
    languages = list(dict.fromkeys(data.questions[index]["language"] for index in asked))
    for number, language in enumerate(languages):
        for index in asked:
            row = data.questions[index]
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


__all__ = ["COLUMNS", "GUESS", "MODES", "STUDENT", "curves", "guesses", "samples", "score"]
