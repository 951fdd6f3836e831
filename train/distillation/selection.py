"""Which of a teacher's answers a student learns, and what is said about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from train.distillation.teacher import Answer

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the quantiles in a report


def taught_rows(
    rows: Sequence[Mapping[str, Any]],
    answers: Sequence[Answer],
    threshold: float | None = None,
    keep: float | None = None,
) -> list[dict[str, Any]]:
    """The rows with the answers that are kept, for a student to train on.

    Never kept are an empty answer and one that was cut off: a student would learn to say nothing, or not to end.

    Args:
        rows: prompts, as the teacher read them, with `instruction` or with `messages`.
        answers: one for each row.
        threshold: least mean log-likelihood, at most 0; None keeps all.
        keep: instead, the share of the answers that is kept, in (0, 1]: the likeliest of those that could be kept.

    Raises:
        ValueError: a threshold above 0, a share out of its range, both of them, or not one answer for each row.

    Example:
        >>> rows = [{"instruction": "Land?"}, {"instruction": "Geld?"}]
        >>> taught_rows(rows, [Answer("Japan", -0.1), Answer("Yen", -2.0)], threshold=-1.0)
        [{'instruction': 'Land?', 'output': 'Japan'}]
    """
    if len(rows) != len(answers):
        raise ValueError(f"answers: expected one for each of {len(rows)} rows, got {len(answers)}")
    found = zip(rows, answers, reasons(answers, threshold, keep))
    return [_answered(row, answer.text) for row, answer, why in found if why == "kept"]


def _answered(row: Mapping[str, Any], text: str) -> dict[str, Any]:
    if row.get("messages") is None:
        return {**row, "output": text}
    turns = list(row["messages"])
    turns = turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns
    return {**row, "messages": [*turns, {"role": "assistant", "content": text}]}


def reasons(answers: Sequence[Answer], threshold: float | None = None, keep: float | None = None) -> list[str]:
    """For each answer why it is left out, or `"kept"`. Arguments and errors are those of `taught_rows`.

    Example:
        >>> answers = [Answer("", -0.5), Answer("Yen", -0.5, ended=False), Answer("Yen", -0.5), Answer("Euro", -0.1)]
        >>> reasons(answers, threshold=-0.4)
        ['empty', 'cut off', 'below the threshold', 'kept']
        >>> reasons(answers, keep=0.5)
        ['empty', 'cut off', 'less likely', 'kept']
    """
    if threshold is not None and keep is not None:
        raise ValueError(f"keep: expected either a threshold or a share to keep, got {threshold} and {keep}")
    if threshold is not None and not threshold <= 0:
        raise ValueError(f"threshold: expected a mean log-likelihood, at most 0, got {threshold}")
    if keep is not None and not 0 < keep <= 1:
        raise ValueError(f"keep: expected a share of the answers, above 0 and at most 1, got {keep}")
    found = [_reason(answer, threshold) for answer in answers]
    usable = [number for number, why in enumerate(found) if why == "kept"]
    usable.sort(key=lambda number: -answers[number].log_likelihood)
    for number in usable[len(usable) if keep is None else max(1, round(keep * len(usable))) :]:
        found[number] = "less likely"
    return found


def _reason(answer: Answer, threshold: float | None) -> str:
    if not answer.text:
        return "empty"
    if not answer.ended:
        return "cut off"
    return "below the threshold" if threshold is not None and answer.log_likelihood < threshold else "kept"


def kept_report(answers: Sequence[Answer], threshold: float | None = None, keep: float | None = None) -> dict[str, Any]:
    """What `taught_rows` keeps: numbers by `reasons`, and quantiles of the log-likelihood of those that could be kept.

    At a quantile's value as threshold, the share of answers above it stays.

    Example:
        >>> kept_report([Answer("Yen", -0.1), Answer("Yen", -0.3), Answer("", -0.1)], threshold=-0.2)["numbers"]
        {'answers': 3, 'kept': 1, 'empty': 1, 'cut off': 0, 'below the threshold': 1, 'less likely': 0}
    """
    names = ("kept", "empty", "cut off", "below the threshold", "less likely")
    found = reasons(answers, threshold, keep)
    numbers = {"answers": len(answers), **{name: found.count(name) for name in names}}
    usable = sorted(answer.log_likelihood for answer in answers if _reason(answer, None) == "kept")
    places = {share: usable[min(len(usable) - 1, int(share * len(usable)))] for share in SHARES} if usable else {}
    quantiles = {f"{share:g}": value for share, value in places.items()}
    return {"threshold": threshold, "keep": keep, "numbers": numbers, "quantiles": quantiles}


__all__ = ["kept_report", "reasons", "taught_rows"]
