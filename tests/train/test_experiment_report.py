"""The experiment's statistics, and words that follow the numbers."""

from pathlib import Path

import pytest

from train.experiment.pool import read_results
from train.experiment.report import render
from train.experiment.settings import Condition, Settings, read_settings
from train.experiment.statistics import difference, estimate

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
