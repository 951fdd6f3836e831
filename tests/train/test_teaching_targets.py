"""Conditions whose students learn a teacher's distributions."""

from dataclasses import replace

import pytest
import yaml
from tiny_llama import SCRATCH

from train.common.english_in_prompt import with_english
from train.distillation.targets import TargetTrainer, with_targets
from train.experiment import teaching
from train.experiment.data import load
from train.experiment.job import run_job
from train.experiment.settings import Condition, read_settings

TINY = {
    **{"scratch": SCRATCH, "vocab_size": 400, "languages": ["en", "de"], "relations": ["currency"], "seeds": [0]},
    **{"steps": 2, "batch_size": 4, "max_length": 96, "questions": 4, "eval_batch_size": 32},
    "conditions": {"vanilla": {"method": "vanilla"}, "cc": {}, "both": {"method": "both"}},
}


@pytest.mark.parametrize("teacher", ["cc", "both", "vanilla"])
def test_the_experiment_trains_the_teacher_again(tmp_path, teacher, monkeypatch):
    student = {"method": "vanilla", "teacher": teacher, "top": 3, "keep": 0.5, "text_weight": 0.5}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**TINY, "conditions": {**TINY["conditions"], "student": student}}))
    settings = read_settings(path)
    result = run_job(settings, teacher, 0)
    seen = []
    monkeypatch.setattr(teaching, "TargetTrainer", lambda **options: seen.append(options) or TargetTrainer(**options))
    read = []

    def watched(model, collator, rows, answers, top, pivot):
        read.append((list(rows), pivot))
        return with_targets(model, collator, rows, answers, top, pivot)

    monkeypatch.setattr(teaching, "with_targets", watched)
    run_job(settings, "student", 0, result)
    [options] = seen
    data = load(settings, 0)
    assert {pivot for _, pivot in read} == {teacher == "cc"}
    assert read[0][0] == (with_english(data.prompts) if teacher == "both" else data.prompts)
    rows, targets = options["train_dataset"], options["targets"]
    assert options["text_weight"] == 0.5
    assert targets[: len(data.train)] == [None] * len(data.train)
    assert len(targets) == len(rows) == len(data.train) + round(len(data.prompts) / 2)
    assert all(len(found.top[0]) == 3 for found in targets[len(data.train) :])
    other = {**result, "answers": [["other", *answer[1:]] for answer in result["answers"]]}
    with pytest.raises(
        ValueError, match=f"teacher: expected the answers of {teacher} from the same training, got others"
    ):
        run_job(settings, "student", 0, other)
    alone = replace(
        settings, conditions={**settings.conditions, "student": Condition("vanilla", teacher=teacher, keep=0.5)}
    )
    assert alone.fingerprint("student") != settings.fingerprint("student")


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (
            {"method": "vanilla", "top": 3},
            "top: expected a positive number, .* got 3 with method vanilla and teacher None",
        ),
        ({"method": "vanilla", "top": 3, "teacher": "truth"}, "top: expected a positive number, .* teacher truth"),
        ({"top": 3, "teacher": "both"}, "top: expected a positive number, .* got 3 with method cc and teacher both"),
        ({"method": "vanilla", "top": 0, "teacher": "both"}, "top: expected a positive number, .* got 0 with method"),
        ({"method": "vanilla", "teacher": "both", "text_weight": 0.5}, "text_weight: expected .* with top, got 0.5"),
        ({"method": "vanilla", "teacher": "both", "top": 2, "text_weight": 2}, "text_weight: expected .* got 2"),
    ],
)
def test_wrong_conditions(condition, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**TINY, "conditions": {**TINY["conditions"], "odd": condition}}))
    with pytest.raises(ValueError, match=f"odd: {message}"):
        read_settings(path)
