"""Which of a teacher's answers a student learns, and what is said about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from train.distillation.teacher import Answer


def taught_rows(
    rows: Sequence[Mapping[str, Any]], answers: Sequence[Answer], threshold: float | None = None
) -> list[dict[str, Any]]:
    """The rows with the answers that are kept in `output`.

    An empty answer is never kept; there is nothing to learn from it.

    Args:
        rows: prompts, as the teacher read them.
        answers: one for each row.
        threshold: least mean log-likelihood, at most 0; None keeps all.

    Raises:
        ValueError: a threshold above 0, or not one answer for each row.

    Example:
        >>> rows = [{"instruction": "Land?"}, {"instruction": "Geld?"}]
        >>> taught_rows(rows, [Answer("Japan", -0.1), Answer("Yen", -2.0)], threshold=-1.0)
        [{'instruction': 'Land?', 'output': 'Japan'}]
    """
    if threshold is not None and threshold > 0:
        raise ValueError(f"threshold: expected a mean log-likelihood, at most 0, got {threshold}")
    if len(rows) != len(answers):
        raise ValueError(f"answers: expected one for each of {len(rows)} rows, got {len(answers)}")
    least = float("-inf") if threshold is None else threshold
    return [
        {**row, "output": answer.text}
        for row, answer in zip(rows, answers)
        if answer.text and answer.log_likelihood >= least
    ]


__all__ = ["taught_rows"]
