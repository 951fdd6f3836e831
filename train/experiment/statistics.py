"""Means over seeds with intervals, and paired differences between conditions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Student's t, 97.5 %, for 1 to 9 degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its 95 % interval `mean ± t · s/√n` (Student's t, n − 1 degrees of freedom).

    `half` is None for one seed. `values` are the seeds' own.
    """

    mean: float
    half: float | None
    values: tuple[float, ...]

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.half is not None and abs(self.mean) > self.half


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one value per seed, with its interval.

    Example:
        >>> found = estimate([1.0, 2.0, 3.0])
        >>> found.mean, round(found.half, 3), found.clear
        (2.0, 2.484, False)
    """
    count = len(values)
    if count == 0:
        raise ValueError("values: expected at least one seed, got none")
    mean = sum(values) / count
    if count == 1:
        return Estimate(mean, None, tuple(values))
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    quantile = _T[count - 2] if count - 2 < len(_T) else 1.96
    return Estimate(mean, quantile * deviation / math.sqrt(count), tuple(values))


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
    """One value per seed of a condition's mode."""
    return {
        result["seed"]: measure(result["modes"][mode])
        for result in sorted(results, key=lambda result: result["seed"])
        if result["condition"] == condition and mode in result["modes"]
    }


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> Estimate | None:
    """`one − other`, paired by seed; None without a seed in common.

    Example:
        >>> difference({0: 3.0, 1: 5.0, 2: 1.0}, {0: 1.0, 1: 2.0}).values
        (2.0, 3.0)
    """
    common = sorted(set(one) & set(other))
    return estimate([one[seed] - other[seed] for seed in common]) if common else None


__all__ = ["Estimate", "accuracy", "by_seed", "difference", "estimate", "likelihood"]
