"""The paired bootstrap."""

import numpy as np
import pytest

from train.evaluation.benchmarks import languages_of
from train.evaluation.intervals import paired_difference
from train.evaluation.summary import summarise


def brute(groups, others, resamples=4000, seed=7):
    """Redrawn mean differences, one at a time."""
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        parts = []
        for group, other in zip(groups, others):
            rows = generator.integers(len(group), size=len(group))
            parts.append(np.mean([group[i] - other[i] for i in rows]))
        means.append(np.mean(parts))
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize("kind", ["accuracies", "scores"])
def test_equals_redrawing_one_row_after_the_other(kind):
    generator = np.random.default_rng(1)
    draw = (lambda n: generator.integers(0, 2, n)) if kind == "accuracies" else (lambda n: generator.random(n))
    groups, others = [[draw(60).tolist(), draw(30).tolist()] for _ in range(2)]
    found = paired_difference(groups, others)
    means = [np.mean(group) - np.mean(other) for group, other in zip(groups, others)]
    assert found.mean == pytest.approx(np.mean(means))
    assert [found.low, found.high] == pytest.approx(brute(groups, others), abs=0.01)


def test_pairs_are_kept_together():
    hard_and_easy = [0.0] * 40 + [1.0] * 40
    better = [score + 0.1 for score in hard_and_easy]
    found = paired_difference([better], [hard_and_easy])
    assert list(found) == pytest.approx([0.1, 0.1, 0.1])  # unpaired, the interval would be 0.3 wide


def test_every_language_counts_the_same():
    assert paired_difference([[1.0] * 10, [0.0] * 1000], [[0.0] * 10, [0.0] * 1000]).mean == 0.5


def test_the_seed_and_the_confidence():
    scores, others = [[0.0, 1.0, 1.0, 0.0, 1.0]], [[0.0, 0.0, 1.0, 1.0, 0.0]]
    assert paired_difference(scores, others) == paired_difference(scores, others)
    narrow = paired_difference(scores, others, confidence=0.5)
    assert narrow.high - narrow.low < paired_difference(scores, others).high - paired_difference(scores, others).low


@pytest.mark.parametrize(
    ("scores", "others", "message"),
    [
        ([], [], r"scores: expected as many rows as in others, \[\], got \[\]"),
        ([[1.0]], [[1.0, 0.0]], r"expected as many rows as in others, \[2\], got \[1\]"),
        ([[]], [[]], "expected at least one row per language, got none"),
    ],
)
def test_errors(scores, others, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(scores, others)


def test_translations_are_redrawn_together():
    """Ten languages of the same 40 questions are not 400 questions."""
    scores = np.random.default_rng(0).integers(0, 2, (2, 40)).astype(float)

    def mean_interval(ids):
        given = [
            {
                **{"benchmark": "mkqa", "language": language, "mode": mode},
                "results": [{"id": ids(number, language), "f1": score, "exact_match": 0.0} for number, score in rows],
            }
            for mode, rows in zip(("off", "matrix"), (list(enumerate(row)) for row in scores))
            for language in languages_of("mkqa")
        ]
        *lines, mean = summarise(given)["mkqa"]["lines"]
        return lines[0]["differences"]["off"], mean["differences"]["off"]

    one, together = mean_interval(lambda number, language: str(number))
    assert together == pytest.approx(one)
    one, apart = mean_interval(lambda number, language: f"{language} {number}")
    assert apart[2] - apart[1] < 0.5 * (one[2] - one[1])
