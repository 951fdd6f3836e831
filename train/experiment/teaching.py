"""What a condition trains on and is asked with: the rows, and those with a teacher's answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cc_model.data.collator import ParallelCollator
from train.common.english_in_prompt import with_english
from train.common.modes import ENGLISH, VANILLA, answering
from train.distillation.selection import taught_rows
from train.distillation.teacher import Answer, all_answers
from train.experiment.data import Data
from train.experiment.settings import BOTH, CC, TRUTH, Settings


def training_data(settings: Settings, name: str, data: Data, teacher: Mapping[str, Any] | None) -> Data:
    """The data with the rows that the condition `name` trains on.

    Args:
        settings, name, data: as elsewhere.
        teacher: the result of the condition's teacher, of the same seed; None where it has none.

    Raises:
        ValueError: the condition has a teacher, and `teacher` holds no answers.
    """
    condition, rows = settings.conditions[name], data.train
    if condition.teacher == TRUTH:
        rows = rows + data.prompts
    elif condition.teacher is not None:
        if teacher is None or "answers" not in teacher:
            raise ValueError(f"teacher: expected a result of {condition.teacher} with answers, got none")
        answers = [Answer(*answer[:2]) for answer in teacher["answers"]]
        rows = rows + taught_rows(data.prompts, answers, keep=condition.keep)
    return replace(data, train=with_english(rows) if condition.method == BOTH else rows)


def teach(settings: Settings, name: str, model: Any, collator: ParallelCollator, data: Data) -> list[Answer]:
    """What the condition `name` answers to the prompts of half A, with English where it reads English.

    An answer has at most two tokens more than the longest of the training.
    """
    method = settings.conditions[name].method
    longest = max(len(collator.tokenizer(row["output"])["input_ids"]) for row in data.train)
    rows = with_english(data.prompts) if method == BOTH else data.prompts
    options = {"batch_size": settings.eval_batch_size, "max_new_tokens": longest + 2}
    with answering(model, ENGLISH if method == CC else VANILLA) as english:
        return all_answers(model, collator, rows, pivot=english, **options)


def token_costs(collator: ParallelCollator, data: Data, method: str) -> dict[str, float]:
    """Mean tokens of a training row and of a question: what the model reads, and of it English by a pivot pass."""
    costs = {}
    for part, rows in (("trained", data.train), ("asked", data.questions)):
        read = with_english(rows) if method == BOTH and part == "asked" else rows
        encoded = collator.encoder.encode(read, answers=part == "trained")
        costs[part] = sum(len(row.prompt) + len(row.answer) for row in encoded) / len(encoded)
        costs[f"{part}_pivot"] = sum(len(row.pivot) for row in encoded) / len(encoded) if method == CC else 0.0
    return {name: round(value, 2) for name, value in costs.items()}


__all__ = ["teach", "token_costs", "training_data"]
