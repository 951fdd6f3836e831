"""Means with intervals, and paired differences: over the seeds of a condition, or over the questions of one run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval `mean ± t · s/√n` (Student's t, n − 1 degrees of freedom).

    `half` is None for one value. `values` are those of the seeds, or of the questions.
    """

    mean: float
    half: float | None
    values: tuple[float, ...]

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.half is not None and abs(self.mean) > self.half


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values, with its interval.

    Example:
        >>> found = estimate([1.0, 2.0, 3.0])
        >>> found.mean, round(found.half, 3), found.clear
        (2.0, 2.484, False)
    """
    count = len(values)
    if count == 0:
        raise ValueError("values: expected at least one, got none")
    mean = sum(values) / count
    if count == 1:
        return Estimate(mean, None, tuple(values))
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    return Estimate(mean, student_t(count - 1) * deviation / math.sqrt(count), tuple(values))


@cache
def student_t(freedom: int, confidence: float = 0.95) -> float:
    """The t within ±t of which Student's distribution has the share `confidence`, by bisection of the exact share.

    Example:
        >>> [round(student_t(freedom), 3) for freedom in (1, 2, 9, 100)]
        [12.706, 4.303, 2.262, 1.984]
    """
    low, high = 0.0, math.pi / 2  # of θ, t = √ν tan θ
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _share(middle, freedom) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _share(theta: float, freedom: int) -> float:
    """P(|T| ≤ √ν tan θ) for ν degrees of freedom: a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4).

    ν even:  sin θ (1 + 1/2 cos²θ + 1·3/(2·4) cos⁴θ + … up to cos^{ν−2} θ)
    ν odd:   2/π (θ + sin θ (cos θ + 2/3 cos³θ + 2·4/(3·5) cos⁵θ + … up to cos^{ν−2} θ))
    """
    odd = freedom % 2
    term, total = (math.cos(theta), 0.0) if odd else (1.0, 0.0)
    for power in range(odd, freedom - 1, 2):  # the exponent of the cosine
        total += term
        term *= math.cos(theta) ** 2 * (power + 1) / (power + 2)
    return (2 / math.pi) * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total


def accuracy(mode: Mapping[str, Any]) -> float:
    """Percent of questions answered exactly.

    Example:
        >>> accuracy({"correct": "0110"})
        50.0
    """
    return 100 * mode["correct"].count("1") / len(mode["correct"])


def likelihood(mode: Mapping[str, Any]) -> float:
    """Nats per answer token, mean over questions."""
    return sum(mode["nll"]) / len(mode["nll"])


def by_seed(
    results: Sequence[Mapping[str, Any]], condition: str, mode: str, measure: Callable[[Mapping[str, Any]], float]
) -> dict[int, float]:
    """One value per seed of a condition's mode; a seed whose questions all fall into the other half has none."""
    return {
        result["seed"]: measure(result["modes"][mode])
        for result in sorted(results, key=lambda result: result["seed"])
        if result["condition"] == condition and mode in result["modes"] and result["modes"][mode]["correct"]
    }


def of_half(results: Sequence[Mapping[str, Any]], half: str) -> list[dict[str, Any]]:
    """The results with the questions of one half, A or B.

    Example:
        >>> of_half([{"halves": "ABA", "modes": {"vanilla": {"correct": "110", "nll": [1.0, 2.0, 3.0]}}}], "A")
        [{'halves': 'ABA', 'modes': {'vanilla': {'correct': '10', 'nll': [1.0, 3.0]}}}]
    """

    def part(result: Mapping[str, Any], mode: Mapping[str, Any]) -> dict[str, Any]:
        kept = [index for index, letter in enumerate(result["halves"]) if letter == half]
        return {
            "correct": "".join(mode["correct"][index] for index in kept),
            "nll": [mode["nll"][index] for index in kept],
        }

    return [
        {**result, "modes": {name: part(result, mode) for name, mode in result["modes"].items()}} for result in results
    ]


def by_question(one: str, other: str) -> Estimate:
    """`one − other` in points, paired by question, of the marks of two modes.

    Example:
        >>> found = by_question("1101", "1000")
        >>> found.mean, round(found.half, 1), found.clear
        (50.0, 91.9, False)
    """
    return estimate([100.0 * (int(a) - int(b)) for a, b in zip(one, other, strict=True)])


def verdict(found: Estimate) -> str:
    """A difference in points, in words.

    Example:
        >>> verdict(estimate([1.0, 2.0, 3.0]))
        '+2.0 ± 2.5 points: no clear difference'
        >>> verdict(estimate([23.7]))
        '+23.7 points: one seed, no interval'
    """
    if found.half is None:
        return f"{signed(found, 1)} points: one seed, no interval"
    word = ("clearly higher" if found.mean > 0 else "clearly lower") if found.clear else "no clear difference"
    return f"{signed(found, 1)} points: {word}"


def signed(found: Estimate, digits: int) -> str:
    """A difference with its sign and interval.

    Example:
        >>> signed(estimate([-1.0, -2.0, -3.0]), 1)
        '−2.0 ± 2.5'
    """
    half = "" if found.half is None else f" ± {found.half:.{digits}f}"
    mean = round(found.mean, digits) + 0.0  # no negative zero
    return f"{mean:+.{digits}f}{half}".replace("-", "−")


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> Estimate | None:
    """`one − other`, paired by seed; None without a seed in common.

    Example:
        >>> difference({0: 3.0, 1: 5.0, 2: 1.0}, {0: 1.0, 1: 2.0}).values
        (2.0, 3.0)
    """
    common = sorted(set(one) & set(other))
    return estimate([one[seed] - other[seed] for seed in common]) if common else None


__all__ = [
    "Estimate",
    "accuracy",
    "by_question",
    "by_seed",
    "difference",
    "estimate",
    "likelihood",
    "of_half",
    "signed",
    "student_t",
    "verdict",
]
