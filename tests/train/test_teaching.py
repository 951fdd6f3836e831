"""Conditions with a teacher, at a toy size: what is trained on, halves A and B, and the order of the jobs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from train.common.english_in_prompt import with_english
from train.data import build_rows
from train.distillation.teacher import Answer
from train.experiment import job as jobs
from train.experiment.__main__ import main
from train.experiment.data import load
from train.experiment.job import make_model, run_job
from train.experiment.pool import read_results, run_all
from train.experiment.report import write_report
from train.experiment.settings import Condition, read_settings
from train.experiment.teaching import token_costs, training_data

LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TINY = {
    "scratch": {**LLAMA, "num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.2},
    "vocab_size": 400,
    "languages": ["en", "de", "fr"],
    "relations": ["currency", "territory_of_currency"],
    "seeds": [0],
    "steps": 2,
    "batch_size": 4,
    "max_length": 128,
    "fit_pairs": 40,
    "questions": 12,
    "eval_batch_size": 32,
    "conditions": {
        "student_cc": {"method": "vanilla", "teacher": "cc"},  # stands before its teacher
        "vanilla": {"method": "vanilla"},
        "cc": {},
        "both": {"method": "both"},
        "upper_bound": {"method": "vanilla", "teacher": "truth"},
        "impossible": {"inject_layer": 9},
        "orphan": {"method": "vanilla", "teacher": "impossible"},
    },
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("experiment")
    console = Console(record=True, width=200, force_terminal=False, file=(out / "printed").open("w"))
    settings = read_settings(config)
    results = run_all(settings, out, console=console)
    write_report(settings, results, out)
    return settings, out, {result["condition"]: result for result in results}, console.export_text()


def test_students_wait_for_their_teacher_and_are_left_out_where_it_fails(run):
    settings, out, results, printed = run
    assert list(results) == ["vanilla", "cc", "student_cc", "both", "upper_bound"]
    assert "impossible, seed 0 failed" in printed
    assert "1 jobs are left out, because their teacher failed" in printed
    assert {result["condition"] for result in read_results(out, settings)} == set(results)


def test_results_hold_what_the_report_needs(run):
    settings, out, results, _ = run
    data = load(settings, 0)
    modes = {name: set(result["modes"]) for name, result in results.items()}
    assert modes["cc"] == {"english", "off", "matrix"}
    assert modes["both"] == {"both"}
    assert modes["student_cc"] == modes["vanilla"] == modes["upper_bound"] == {"vanilla"}
    for result in results.values():
        assert result["halves"] == data.halves
        assert [len(answer) for answer in result["answers"]] == [3] * len(data.prompts)
        assert all(isinstance(text, str) and sure < 0 and mark in (0, 1) for text, sure, mark in result["answers"])
    assert results["upper_bound"]["train_rows"] == len(data.train) + len(data.prompts)
    report = (out / "report.md").read_text(encoding="utf-8")
    assert report.count("| student_cc | the question |") == 2
    assert "**2 of the planned jobs have not run.**" in report
    assert (out / "differences.png").read_bytes().startswith(b"\x89PNG")


def test_only_a_student_brings_its_teacher(config, tmp_path):
    main([str(config), "--out", str(tmp_path), "--only", "student_cc", "--steps", "1"])
    assert {result["condition"] for result in read_results(tmp_path)} == {"vanilla", "cc", "student_cc"}


def test_conditions_run_alone_are_part_of_the_whole(config, tmp_path):
    """Without its students a teacher would be another experiment, and run again for them."""
    main([str(config), "--out", str(tmp_path), "--only", "cc", "--steps", "1"])
    ended = read_results(tmp_path, read_settings(config, steps=1))
    assert {result["condition"] for result in ended} == {"vanilla", "cc"}
    assert all("halves" in result for result in ended)


def test_halves_are_facts_in_all_their_languages(config):
    settings = read_settings(config, questions=1000, held_out=0.4)
    data = load(settings, 0)

    def link(row):
        return frozenset((row["subject"], row["object"]))  # a fact and its mirror

    assert set(data.halves) == {"A", "B"}
    in_a = {link(row) for row in data.prompts}
    for row, half in zip(data.questions, data.halves, strict=True):
        assert (link(row) in in_a) == (half == "A")
    held_out = build_rows(settings.languages, settings.relations, 0.4, 0)["held_out"]
    assert sum(link(row) in in_a for row in held_out) == len(data.prompts)  # no mirror of one is in half B
    trained = {(row["language"], row["fact_id"]) for row in data.train}
    assert not {(row["language"], row["fact_id"]) for row in data.prompts} & trained
    assert all(row["instruction_en"] for row in data.prompts)
    assert {row["relation"] for row in data.prompts} == {"currency", "territory_of_currency"}
    assert load(settings, 1).halves != data.halves


def test_what_is_trained_on(config):
    settings = read_settings(config)
    data = load(settings, 0)
    answers = [["x", -0.5, 1], ["", -0.1, 0], *[["y", -9.0, 0]] * (len(data.prompts) - 2)]

    def rows(name, teacher=None):
        return training_data(settings, name, data, teacher).train

    assert rows("vanilla") == rows("cc") == data.train
    added = rows("student_cc", {"answers": answers})[len(data.train) :]
    assert [row["output"] for row in added] == ["x", *["y"] * (len(data.prompts) - 2)]
    assert added[0]["instruction"] == data.prompts[0]["instruction"]
    half = Condition("vanilla", teacher="cc", keep=0.5)
    some = replace(settings, conditions={**settings.conditions, "student_cc": half})
    answers[-1] = ["y", -0.1, 0]
    likelier = training_data(some, "student_cc", data, {"answers": answers}).train[len(data.train) :]
    assert len(likelier) == round((len(answers) - 1) / 2)  # of those that are not empty
    assert likelier[0] == added[0]
    assert likelier[-1] == added[-1]
    assert rows("upper_bound") == data.train + data.prompts
    read = rows("both")
    assert [row["output"] for row in read] == [row["output"] for row in data.train]
    for row, own in zip(read, data.train, strict=True):
        question = f"{own['instruction_en']}\n\n{own['instruction']}" if own["instruction_en"] else own["instruction"]
        assert (row["instruction"], row["instruction_en"]) == (question, "")
    with pytest.raises(ValueError, match="teacher: expected a result of cc with answers, got none"):
        rows("student_cc")
    with pytest.raises(ValueError, match="teacher: expected a result of cc with answers, got none"):
        rows("student_cc", {"modes": {}})


def test_a_teacher_reads_english_and_no_answer(config, monkeypatch):
    """What each kind of teacher gets to read, and that a student's teacher is read from its result."""
    settings = read_settings(config)
    seen = {}

    def watched(model, collator, rows, **options):
        seen[len(seen)] = rows, options["pivot"]
        return [Answer("x", -1.0) for _ in rows]

    monkeypatch.setattr("train.experiment.teaching.all_answers", watched)
    for name in ("cc", "both", "vanilla"):
        run_job(replace(settings, steps=1, questions=2), name, 0)
    data = load(settings, 0)
    assert [pivot for _, pivot in seen.values()] == [True, False, False]
    assert seen[0][0] == seen[2][0] == data.prompts
    assert seen[1][0] == with_english(data.prompts)
    trained = []
    monkeypatch.setattr(jobs, "train", lambda *args, **options: trained.append(args[4].train) or jobs.Trained([], []))
    teacher = {"answers": [["learn this", -1.0, 0]] * len(data.prompts)}
    run_job(replace(settings, questions=2), "student_cc", 0, teacher)
    assert [row["output"] for row in trained[0]].count("learn this") == len(data.prompts)


def test_token_costs(config):
    settings = read_settings(config)
    data = load(settings, 0)
    data = replace(data, train=data.train[:30])
    _, collator = make_model(settings, settings.conditions["cc"], data, 0)

    def tokens(text, other=None):
        row = {"instruction": text, **({"output": other} if other else {})}
        encoded = collator.encoder.encode([row], answers=bool(other))[0]
        return len(encoded.prompt) + len(encoded.answer)

    costs = {method: token_costs(collator, data, method) for method in ("vanilla", "cc", "both")}
    asked = [tokens(row["instruction"]) for row in data.questions]
    english = [tokens(row["instruction_en"]) for row in data.questions]
    read = [tokens(f"{row['instruction_en']}\n\n{row['instruction']}") for row in data.questions]
    trained = [tokens(row["instruction"], row["output"]) for row in data.train]
    for method, expected in (("vanilla", (asked, 0)), ("cc", (asked, sum(english))), ("both", (read, 0))):
        assert costs[method]["asked"] == pytest.approx(sum(expected[0]) / len(asked), abs=0.01)
        assert costs[method]["asked_pivot"] == pytest.approx(expected[1] / len(asked), abs=0.01)
        assert costs[method]["trained"] == pytest.approx(sum(trained) / len(trained), abs=0.01)


def test_a_teacher_is_part_of_a_students_fingerprint(config):
    settings = read_settings(config)
    other = {**settings.conditions, "cc": Condition(config={"hard": False})}
    changed = replace(settings, conditions=other)
    assert changed.fingerprint("student_cc") != settings.fingerprint("student_cc")
    assert changed.fingerprint("upper_bound") == settings.fingerprint("upper_bound")
    half = Condition("vanilla", teacher="cc", keep=0.5)
    some = replace(settings, conditions={**settings.conditions, "student_cc": half})
    assert some.fingerprint("student_cc") != settings.fingerprint("student_cc")
    alone = replace(settings, conditions={name: settings.conditions[name] for name in ("vanilla", "cc")})
    assert alone.fingerprint("cc") != settings.fingerprint("cc")  # these results have no answers


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"teacher": "nobody"}, r"odd: teacher: expected one of truth, vanilla, .*, got 'nobody'"),
        ({"teacher": "student_cc"}, r"odd: teacher: expected one of truth, vanilla, .*, got 'student_cc'"),
        ({"keep": 0.5}, "odd: keep: expected a share .* of a teacher's answers, got 0.5 of teacher None"),
        ({"teacher": "truth", "keep": 0.5}, "odd: keep: expected a share .* got 0.5 of teacher truth"),
        ({"teacher": "cc", "keep": 2}, "odd: keep: expected a share above 0 and at most 1 .* got 2 of teacher cc"),
        ({"method": "student"}, "odd: method: expected one of vanilla, cc, both, got 'student'"),
    ],
)
def test_wrong_conditions(condition, message, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(json.dumps({**TINY, "conditions": {**TINY["conditions"], "odd": condition}}))
    with pytest.raises(ValueError, match=message):
        read_settings(path)


def test_both_questions_fit_into_the_configs_length():
    for name in ("distil", "distil_small"):
        settings = read_settings(Path(__file__).parents[2] / "train" / "configs" / f"experiment_{name}.yaml")
        data = load(settings, 0)
        _, collator = make_model(settings, settings.conditions["both"], data, 0)
        assert max(collator.lengths(row) for row in with_english(data.train + data.prompts)) <= settings.max_length
        assert collator.truncated == 0
