"""The report of an experiment with teachers: words that follow the numbers of halves A and B."""

import re
from dataclasses import replace

import pytest

from train.experiment.report import render, write_report
from train.experiment.settings import Condition, Settings
from train.experiment.statistics import accuracy, by_seed, of_half


def made_up(right):
    """Results of 3 seeds, 50 questions of A and 50 of B; `right`: condition and mode → right ones of A, of B."""
    results = []
    for seed in range(3):
        for (name, mode), (a, b) in right.items():
            correct = "".join("1" * (n + seed) + "0" * (50 - n - seed) for n in (a, b))
            answers = [["same" if seed else name, -float(place), int(place < 2)] for place in range(4)]
            common = {"train_rows": 7, "parameters": 5, "maps": {}, "losses": [1.0], "refits": [], "questions": 100}
            common |= {"seconds": {"train": 1.0, "evaluate": 1.0}, "device": "cpu", "halves": "A" * 50 + "B" * 50}
            common |= {"tokens": {"trained": 1.0, "trained_pivot": 2.0, "asked": 3.0, "asked_pivot": 4.0}}
            modes = {mode: {"correct": correct, "nll": [1.0 - a / 100] * 50 + [1.0 - b / 100 + seed] * 50}}
            if name == "cc":
                modes["matrix"] = {"correct": "1" * 10 + "0" * 90, "nll": [2.0] * 100}
            results.append({"condition": name, "seed": seed, "modes": modes, "answers": answers, **common})
    return results


def test_words_follow_the_numbers():
    conditions = {"vanilla": Condition("vanilla"), "cc": Condition(), "both": Condition("both")}
    conditions |= {"s": Condition("vanilla", teacher="cc"), "top": Condition("vanilla", teacher="truth")}
    settings = Settings(conditions, scratch={"model_type": "llama"}, seeds=(0, 1, 2))
    right = {("vanilla", "vanilla"): (20, 20), ("cc", "english"): (40, 40), ("both", "both"): (30, 30)}
    right |= {("s", "vanilla"): (35, 10), ("top", "vanilla"): (20, 20)}
    results = made_up(right)
    report = "\n".join(render(settings, results))
    assert "Students on A, by accuracy: clearly better than vanilla: s; worse: none." in report
    assert "Students on B, by accuracy: clearly better than vanilla: none; worse: s." in report
    assert "Students on A, by likelihood: clearly better than vanilla: s; worse: none." in report
    assert "Students on B, by likelihood: clearly better than vanilla: none; worse: s." in report
    assert re.search(
        r"\*\*s\*\* against \*vanilla\*, on A: \+30\.0 ± 0\.0 points: clearly higher; on B: −20\.0", report
    )
    assert "Against its teacher cc, on A: −10.0 ± 0.0 points: clearly lower." in report
    assert "It gives its teacher's text for 67 % of A's prompts." in report
    assert "Teachers, on all questions: both against cc: −20.0 ± 0.0 points: clearly lower." in report
    assert "cc with the matrix against *vanilla*, on all questions: −32.0 ± 5.0 points: clearly lower." in report
    assert "| cc | 50.0 ± 0.0 % | 100.0 ± 0.0 % | 0.0 ± 0.0 % |" in report  # all, likelier half, less likely half
    assert "not run" not in report
    assert list(by_seed(of_half(results, "B"), "s", "vanilla", accuracy).values()) == [20.0, 22.0, 24.0]


def test_a_student_of_the_likelier_half_is_compared_with_that_of_all_answers():
    conditions = {"vanilla": Condition("vanilla"), "cc": Condition(), "s": Condition("vanilla", teacher="cc")}
    right = {("vanilla", "vanilla"): (20, 20), ("cc", "english"): (40, 40), ("s", "vanilla"): (35, 10)}
    all_learned = "No threshold was used in training: all answers were learned."

    def report(**more):
        settings = Settings({**conditions, **more}, scratch={"model_type": "llama"}, seeds=(0, 1, 2))
        return "\n".join(render(settings, made_up({**right, **{(name, "vanilla"): (25, 20) for name in more}})))

    half = Condition("vanilla", teacher="cc", keep=0.5)
    text = report(half=half)
    assert (
        "Against s, on A: −20.0 ± 0.0 points: clearly lower, and +0.100 ± 0.000 nats per answer token; "
        "on B: +20.0 ± 0.0 points: clearly higher, and −0.100 ± 0.000 nats per answer token." in text
    )
    assert "half learned the likeliest 50 % of them; the other students learned all." in text
    assert "`half` (method vanilla, teacher cc, keep 0.5)" in text
    soft = report(soft=replace(half, keep=None, top=3, text_weight=0.5))
    assert "**soft** against *vanilla*" in soft
    assert "Against s, on A: −20.0 ± 0.0 points" in soft
    assert "`soft` (method vanilla, teacher cc, top 3, text_weight 0.5)" in soft
    assert soft.count("Against s, ") == 1
    assert all_learned not in text
    assert "Against s, " not in report(other=replace(half, teacher="vanilla"))
    assert all_learned in report()


@pytest.mark.parametrize(("only", "missing"), [("A", "B"), ("B", "A")])
def test_all_questions_in_one_half(only, missing, tmp_path):
    conditions = {"vanilla": Condition("vanilla"), "cc": Condition(), "s": Condition("vanilla", teacher="cc")}
    settings = Settings(conditions, scratch={"model_type": "llama"}, seeds=(0, 1, 2))
    right = {("vanilla", "vanilla"): (20, 20), ("cc", "english"): (40, 40), ("s", "vanilla"): (35, 35)}
    results = [{**result, "halves": only * 100, "answers": result["answers"][:1]} for result in made_up(right)]
    report = write_report(settings, results, tmp_path).read_text(encoding="utf-8")
    assert f"Half {missing} (0 questions)" in report
    gain = "+30.0 ± 0.0 points: clearly higher"
    on = {only: gain, missing: "no question"}
    assert f"**s** against *vanilla*, on A: {on['A']}; on B: {on['B']}." in report
    row = next(line for line in report.splitlines() if line.startswith("| s | the question"))
    assert row.count("no question") == 1
    assert row.count("+30.0 ± 0.0") == 1
    assert (tmp_path / "differences.png").stat().st_size > 0
    halves_of_answers = report.split("## What the likelihood of an answer says")[1].split("## ")[0]
    assert "| cc |" not in halves_of_answers  # one answer has no halves
