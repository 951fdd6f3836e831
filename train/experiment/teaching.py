"""What a condition trains on and is asked with: the rows, and those with a teacher's answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from cc_model.data.collator import ParallelCollator
from cc_model.integrations.trainer import CCTrainer
from train.common.english_in_prompt import with_english
from train.common.modes import ENGLISH, VANILLA, answering
from train.distillation.selection import reasons, taught_rows
from train.distillation.targets import TargetTrainer, with_targets
from train.distillation.teacher import Answer, all_answers
from train.experiment.data import Data
from train.experiment.settings import BOTH, CC, TRUTH, Settings
from train.experiment.training import make_model, train


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


def student_trainer(
    settings: Settings, name: str, data: Data, teacher: Mapping[str, Any] | None, seed: int
) -> Callable[..., CCTrainer]:
    """The kind of trainer of the condition `name`: with `top`, one whose targets are its teacher's distributions.

    A result keeps answers, and no weights. So the teacher is trained again, which gives the same one.

    Args:
        settings, name, data, seed: as elsewhere.
        teacher: as in `training_data`.

    Raises:
        ValueError: the teacher that was trained again answers otherwise than its result says.
    """
    condition = settings.conditions[name]
    if condition.top is None or teacher is None:
        return CCTrainer
    taught_by, own = str(condition.teacher), settings.conditions[str(condition.teacher)]
    model, collator = make_model(settings, own, data, seed)
    read = training_data(settings, taught_by, data, None)
    train(settings, own, model, collator, read, seed)
    answers = [Answer(*answer[:2]) for answer in teacher["answers"]]
    prompts = with_english(data.prompts) if own.method == BOTH else data.prompts
    with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.bf16):
        again = teach(settings, taught_by, model.eval(), collator, read)
        if [answer.text for answer in again] != [answer.text for answer in answers]:
            raise ValueError(
                f"teacher: expected the answers of {taught_by} from the same training, got others, as on another "
                "device or with another version; run it anew in another --out"
            )
        found: dict[int, Answer] = {}
        with answering(model, ENGLISH if own.method == CC else VANILLA) as english:
            for start in range(0, len(prompts), 16):
                part = dict(enumerate(answers[start : start + 16], start))
                found |= with_targets(model, collator, prompts, part, condition.top, english)
    learned = zip(range(len(answers)), reasons(answers, keep=condition.keep))
    targets = [None] * len(data.train) + [found[number].targets for number, why in learned if why == "kept"]
    return partial(TargetTrainer, targets=targets, text_weight=condition.text_weight)


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


__all__ = ["student_trainer", "teach", "token_costs", "training_data"]
