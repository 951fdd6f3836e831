"""Confidence intervals of paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Difference(NamedTuple):
    """Mean difference and the bounds of its interval, in the unit of the scores."""

    mean: float
    low: float
    high: float


def paired_difference(
    scores: Sequence[Sequence[float]],
    others: Sequence[Sequence[float]],
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Mean difference `scores − others` over the same rows, averaged over languages, with a bootstrap interval.

        d = mean_g mean_i (s_gi − o_gi);  rows are redrawn with replacement within each language g, in pairs; the
        interval holds the middle `confidence` of the redrawn d (percentile bootstrap, Efron 1979)

    Pairs keep what both modes share, such as how hard a row is, out of the interval. With few rows it is too narrow.

    Args:
        scores: for each language the scores of its rows.
        others: the scores of the same rows in the other mode.
        resamples: how often rows are redrawn.
        confidence: share of the redrawn differences inside the interval.
        seed: of the draws.

    Raises:
        ValueError: there are no languages, a language has no rows, or the numbers of rows differ.

    Example:
        >>> paired_difference([[1, 1, 0, 1]], [[1, 1, 0, 1]])
        Difference(mean=0.0, low=0.0, high=0.0)
        >>> difference = paired_difference([[1.0] * 50 + [0.0] * 50], [[0.0] * 100])
        >>> difference.mean, round(difference.low, 1), round(difference.high, 1)
        (0.5, 0.4, 0.6)
    """
    if not scores or [len(group) for group in scores] != [len(group) for group in others]:
        raise ValueError(
            f"scores: expected as many rows as in others, {[len(group) for group in others]}, "
            f"got {[len(group) for group in scores]}"
        )
    if not all(len(group) for group in scores):
        raise ValueError("scores: expected at least one row per language, got none")
    generator = np.random.default_rng(seed)
    redrawn = np.zeros(resamples)
    means = []
    for group, other in zip(scores, others):
        difference = np.asarray(group, dtype=float) - np.asarray(other, dtype=float)
        means.append(difference.mean())
        redrawn += _means(difference, resamples, generator) / len(scores)
    low, high = np.quantile(redrawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(float(np.mean(means)), float(low), float(high))


def _means(values: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """`(resamples,)` means of redrawn values; each draw says how often every distinct value was taken."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) < len(values) / 4:  # accuracies: at most three distinct differences
        return generator.multinomial(len(values), counts / len(values), size=resamples) @ distinct / len(values)
    rows = max(1, 2**22 // len(values))  # bounded memory
    parts = [
        values[generator.integers(len(values), size=(min(rows, resamples - start), len(values)))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(parts)


__all__ = ["Difference", "paired_difference"]
