"""Which of a teacher's answers a student learns, and what is said about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from train.distillation.teacher import Answer

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the quantiles in a report


def taught_rows(
    rows: Sequence[Mapping[str, Any]], answers: Sequence[Answer], threshold: float | None = None
) -> list[dict[str, Any]]:
    """The rows with the answers that are kept, for a student to train on.

    Never kept are an empty answer and one that was cut off: a student would learn to say nothing, or not to end.

    Args:
        rows: prompts, as the teacher read them, with `instruction` or with `messages`.
        answers: one for each row.
        threshold: least mean log-likelihood, at most 0; None keeps all.

    Raises:
        ValueError: a threshold above 0, or not one answer for each row.

    Example:
        >>> rows = [{"instruction": "Land?"}, {"instruction": "Geld?"}]
        >>> taught_rows(rows, [Answer("Japan", -0.1), Answer("Yen", -2.0)], threshold=-1.0)
        [{'instruction': 'Land?', 'output': 'Japan'}]
    """
    if threshold is not None and not threshold <= 0:
        raise ValueError(f"threshold: expected a mean log-likelihood, at most 0, got {threshold}")
    if len(rows) != len(answers):
        raise ValueError(f"answers: expected one for each of {len(rows)} rows, got {len(answers)}")
    return [_answered(row, answer.text) for row, answer in zip(rows, answers) if reason(answer, threshold) == "kept"]


def _answered(row: Mapping[str, Any], text: str) -> dict[str, Any]:
    if row.get("messages") is None:
        return {**row, "output": text}
    turns = list(row["messages"])
    turns = turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns
    return {**row, "messages": [*turns, {"role": "assistant", "content": text}]}


def reason(answer: Answer, threshold: float | None = None) -> str:
    """Why an answer is left out, or `"kept"`.

    Example:
        >>> [reason(Answer(text, -0.5, ended), -0.4) for text, ended in (("", True), ("Yen", False), ("Yen", True))]
        ['empty', 'cut off', 'below the threshold']
    """
    if not answer.text:
        return "empty"
    if not answer.ended:
        return "cut off"
    return "below the threshold" if threshold is not None and answer.log_likelihood < threshold else "kept"


def kept_report(answers: Sequence[Answer], threshold: float | None = None) -> dict[str, Any]:
    """What `taught_rows` keeps: numbers by `reason`, and quantiles of the log-likelihood of those that could be kept.

    At a quantile's value as threshold, the share of answers above it stays.

    Example:
        >>> kept_report([Answer("Yen", -0.1), Answer("Yen", -0.3), Answer("", -0.1)], threshold=-0.2)["numbers"]
        {'answers': 3, 'kept': 1, 'empty': 1, 'cut off': 0, 'below the threshold': 1}
    """
    numbers = {"answers": len(answers), "kept": 0, "empty": 0, "cut off": 0, "below the threshold": 0}
    for answer in answers:
        numbers[reason(answer, threshold)] += 1
    usable = sorted(answer.log_likelihood for answer in answers if reason(answer) == "kept")
    places = {share: usable[min(len(usable) - 1, int(share * len(usable)))] for share in SHARES} if usable else {}
    return {"threshold": threshold, "numbers": numbers, "quantiles": {f"{share:g}": v for share, v in places.items()}}


__all__ = ["kept_report", "reason", "taught_rows"]
