"""The experiment's statistics, and words that follow the numbers."""

from pathlib import Path

import pytest

from train.experiment.pool import read_results
from train.experiment.report import render
from train.experiment.settings import Condition, Settings, read_settings
from train.experiment.statistics import accuracy, by_seed, difference, estimate, of_half, signed, student_t

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "train" / "configs"
COMMITTED = sorted(path.parent for path in (ROOT / "docs" / "experiments").glob("*/results.jsonl"))


def made_up(gains):
    """Results of 3 seeds: vanilla right on 40 of 100, each condition on so many more with the matrix."""

    def mode(right):
        return {"correct": "1" * right + "0" * (100 - right), "nll": [1.0] * 100}

    common = {"questions": 100, "train_rows": 7, "parameters": 5, "maps": {}, "losses": [1.0], "refits": []}
    common |= {"seconds": {"train": 1.0, "evaluate": 1.0}, "device": "cpu"}
    results = []
    for seed in range(3):
        results.append({"condition": "vanilla", "seed": seed, "modes": {"vanilla": mode(40)}, **common})
        for name, gain in gains.items():
            modes = {"matrix": mode(40 + gain[seed]), "english": mode(90), "off": mode(30)}
            modes["matrix"]["nll"] = [0.9 if name == "half" else 1.0 + 0.1 * seed] * 100
            results.append({"condition": name, "seed": seed, "modes": modes, **common})
    return results


def test_words_follow_the_numbers():
    gains = {"cc": (-9, -10, -11), "ramp": (9, 10, 11), "half": (-10, 0, 10)}
    conditions = {"vanilla": Condition("vanilla"), **{name: Condition() for name in gains}}
    settings = Settings(conditions, scratch={"model_type": "llama"}, seeds=(0, 1, 2))
    report = "\n".join(render(settings, made_up(gains)))
    assert "By accuracy, clearly better than vanilla: ramp; worse: cc." in report
    assert "By the likelihood of the right answers, clearly better than vanilla: half; worse: none." in report
    assert "**ramp**: *matrix* against *vanilla*: +10.0 ± 2.5 points: clearly higher" in report
    assert "**half**: *matrix* against *vanilla*: +0.0 ± 24.8 points: no clear difference" in report
    assert "ramp against the published recipe (cc), both *matrix*: +20.0 ± 5.0 points: clearly higher" in report
    assert "not run" not in report


def test_estimates():
    found = estimate([1.0, 3.0])
    assert found.mean == 2.0
    assert found.half == pytest.approx(12.7062047)  # t of one degree of freedom, times s/√n = 1
    for freedom, quantile in ((1, 12.7062047), (2, 4.3026527), (3, 3.1824463), (9, 2.2621572), (100, 1.9839715)):
        assert student_t(freedom) == pytest.approx(quantile, rel=1e-7)  # from published tables
    assert student_t(5, confidence=0.99) == pytest.approx(4.0321430, rel=1e-7)
    assert estimate([5.0]).half is None
    assert not estimate([5.0]).clear
    assert difference({0: 1.0}, {1: 1.0}) is None
    with pytest.raises(ValueError, match="values: expected at least one, got none"):
        estimate([])


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_committed_reports_say_what_their_results_say(folder):
    settings = read_settings(CONFIGS / f"experiment_{folder.name}.yaml")
    results = read_results(folder, settings)
    assert len(results) == len((folder / "results.jsonl").read_text().splitlines())  # all are of these settings
    assert (folder / "report.md").read_text(encoding="utf-8") == "\n".join(render(settings, results)) + "\n"


TAUGHT = ("cc matrix", "pivot_grad english", "student_pivot_grad vanilla", "both both", "student_both vanilla")


@pytest.mark.parametrize(
    ("document", "study", "ways"),
    [
        ("README.md", "distil_small", TAUGHT),
        ("README.md", "distil", TAUGHT),
        ("docs/training.md", "distil_small", TAUGHT),
        ("docs/training.md", "distil", TAUGHT),
        (
            "docs/experiments/README.md",
            "distil_small",
            (
                *("cc english", "cc matrix", "student_cc vanilla", "pivot_grad english", "pivot_grad matrix"),
                *("student_pivot_grad vanilla", "both both", "student_both vanilla", "student_pivot_grad_half vanilla"),
                *("student_both_half vanilla", "student_both_kl vanilla", "student_pivot_grad_kl vanilla"),
                *("self_training vanilla", "upper_bound vanilla", "pivot_grad_soft english"),
                *("pivot_grad_inject_2 english", "pivot_grad_dropout english"),
            ),
        ),
    ],
)
def test_documents_quote_the_results_of_teachers(document, study, ways):
    """Differences to vanilla on A and B, in the order of the table."""
    results = read_results(ROOT / "docs/experiments" / study, read_settings(CONFIGS / f"experiment_{study}.yaml"))
    halves = [of_half(results, half) for half in "AB"]
    plain = [by_seed(half, "vanilla", "vanilla", accuracy) for half in halves]
    expected = []
    for way in ways:
        found = [by_seed(half, *way.split(), accuracy) for half in halves]
        gains = [difference(one, other) for one, other in zip(found, plain)]
        assert all(len(gain.values) == 5 for gain in gains)
        expected.append(" | ".join(signed(gain, 1) for gain in gains))
    text = (ROOT / document).read_text(encoding="utf-8").replace("*", "")
    quoted = [line for line in text.splitlines() if any(f"| {pair} |" in line for pair in expected)]
    assert len(quoted) == len(expected)
    assert all(pair in line for pair, line in zip(expected, quoted))
