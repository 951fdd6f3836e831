"""The demo in a toy size: its files, and that the report says what the numbers say."""

import json
import re

import pytest
from PIL import Image

from train.demo.__main__ import FAST, main, parse_demo
from train.demo.answers import COLUMNS, MODES
from train.demo.report import render
from train.generate import GenerateArguments, run_generate


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    main(["--fast", "--steps", "14", "--seed", "3", "--out", str(out)])
    return out, json.loads((out / "results.json").read_text(encoding="utf-8"))


def tables(report):
    """Every Markdown table as a list of rows of cells, the header first."""
    found, current = [], []
    for line in [*report.splitlines(), ""]:
        if line.startswith("|"):
            current.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif current:
            found.append([current[0], *current[2:]])
            current = []
    return found


def test_accuracy_tables_are_the_json(demo):
    out, results = demo
    for table, half in zip(tables((out / "report.md").read_text(encoding="utf-8")), "AB"):
        assert table[0] == ["language", "questions", *COLUMNS]
        assert [row[0] for row in table[1:]] == list(results["accuracy"][half])
        for row in table[1:]:
            line = results["accuracy"][half][row[0]]
            assert int(row[1]) == line["questions"]
            for mode, cell in zip(COLUMNS, row[2:], strict=True):
                assert float(cell.removesuffix(" %")) == pytest.approx(100 * line[mode] / line["questions"], abs=0.05)


def test_all_is_the_sum_of_the_languages(demo):
    _, results = demo
    for half in "AB":
        *languages, total = results["accuracy"][half].values()
        assert list(results["accuracy"][half])[-1] == "all"
        assert all(total[key] == sum(line[key] for line in languages) for key in total)
        assert total["questions"] == results["halves"].count(half) > 0
        assert all(0 <= line[mode] <= line["questions"] for line in languages for mode in MODES)
    assert len(results["halves"]) == results["data"]["questions"]


def test_other_tables_are_the_json(demo):
    out, results = demo
    *_, answers, costs, decisions, seconds = tables((out / "report.md").read_text(encoding="utf-8"))
    assert [row[2] for row in answers[1:]] == [sample["expected"] for sample in results["samples"]]
    assert [row[5] for row in answers[1:]] == [sample["student"].strip() for sample in results["samples"]]
    by_step = dict(zip(results["cc"]["step"], results["cc"]["decisions"], strict=True))
    for step, *cells in decisions[1:]:
        assert [float(cell.removesuffix(" %")) for cell in cells] == pytest.approx(
            [100 * share for share in by_step[int(step)]], abs=0.5
        )
    assert [row[0] for row in costs[1:]] == ["vanilla", "cc, english", "cc, matrix", "student"]
    plain = {part: results["costs"][part]["vanilla"] for part in ("step", "first_token")}
    for row, step, token in zip(
        costs[1:], ("vanilla", "cc", "cc", "student"), ("vanilla", "english", "matrix", "vanilla")
    ):
        found = results["costs"]["step"][step], results["costs"]["first_token"][token]
        assert float(row[2].removesuffix(" ×")) == pytest.approx(found[0] / plain["step"], abs=0.006)
        assert float(row[4].removesuffix(" ×")) == pytest.approx(found[1] / plain["first_token"], abs=0.006)
    assert {name: float(cell) for name, cell in seconds[1:]} == pytest.approx(results["seconds"], abs=0.05)


def test_histograms_and_losses(demo):
    _, results = demo
    for name in ("vanilla", "cc", "student"):
        assert results[name]["step"] == list(range(1, 15))
    assert results["vanilla"]["decisions"] == results["student"]["decisions"] == []
    assert all(sum(shares) == pytest.approx(1) for shares in results["cc"]["decisions"])
    # Same first weights and rows: before anything is learned the losses differ by the connection only.
    assert results["cc"]["loss"][0] == pytest.approx(results["vanilla"]["loss"][0], rel=1e-2)
    assert results["vanilla"]["loss"][-1] < results["vanilla"]["loss"][0] - 0.05


def test_plots_and_models(demo):
    out, _ = demo
    for name in ("loss.png", "decisions.png"):
        with Image.open(out / name) as image:
            assert image.size == (1050, 600)
    assert (out / "cc" / "cc_config.json").is_file()
    for name in ("vanilla", "student"):
        assert (out / name / "model.safetensors").is_file()
        assert not (out / name / "cc_config.json").exists()
    report = (out / "report.md").read_text(encoding="utf-8")
    assert str(out) not in report


def made_up(results, **right):
    """The results as if so many of 200 questions of each half had been answered in each mode, the same ones first."""
    correct = {mode: 2 * ("1" * right[mode] + "0" * (200 - right[mode])) for mode in MODES}
    return {**results, "correct": correct, "halves": "A" * 200 + "B" * 200, "agreement": 87.4}


def test_words_follow_the_numbers(demo):
    _, results = demo
    right = {"guess": 50, "vanilla": 60, "english": 180, "student": 60, "matrix": 10}
    same = render(made_up(results, **right))
    assert "On half A the *student* is **not clearly different** from plain fine-tuning: +0.0 ± 0.0 points" in same
    assert "*student* against its teacher (*english*), half A: −60.0 ±" in same
    assert "the teacher's very text for 87 % of A's prompts" in same
    assert "when the English question is there: +60.0 ± 4.8 points: clearly higher" in same
    assert "*matrix* against *vanilla*, all questions: −25.0 ± 4.3 points: clearly lower" in same
    for student, words in ((150, "**answers more than plain fine-tuning**: +45.0"), (20, "is **worse** than plain")):
        assert f"On half A the *student* {words}" in render(made_up(results, **{**right, "student": student}))


def test_each_half_is_compared_apart(demo):
    _, results = demo
    made = made_up(results, **dict.fromkeys(MODES, 100))
    made["correct"]["student"] = "1" * 200 + "0" * 200  # all of A, none of B
    report = render(made)
    assert "On half A the *student* **answers more than plain fine-tuning**: +50.0 ±" in report
    assert "*student* against *vanilla*, half B, about which nobody asked the teacher: −50.0 ±" in report


def test_the_marks_are_what_the_table_counts(demo):
    _, results = demo
    for mode in MODES:
        marks = results["correct"][mode]
        assert len(marks) == results["data"]["questions"]
        for half in "AB":
            mine = [mark for mark, where in zip(marks, results["halves"], strict=True) if where == half]
            assert mine.count("1") == results["accuracy"][half]["all"][mode]


def test_the_model_that_it_leaves_answers_with_train_generate(demo):
    out, results = demo
    sample = results["samples"][0]
    question = sample["question"]
    answers = {}
    for name in ("cc", "vanilla", "student"):
        options = GenerateArguments(str(out / name), [question], device="cpu", max_new_tokens=14)
        [(mode, (text,))] = run_generate(options).items()
        assert mode == {"cc": "matrix"}.get(name, "vanilla")
        answers[{"cc": "matrix"}.get(name, name)] = text
    assert set(answers) == {"matrix", "student", "vanilla"}
    assert all(text.startswith(sample[mode]) or sample[mode].startswith(text) for mode, text in answers.items())


def test_command_line(capsys):
    settings, out = parse_demo(["--steps", "7", "--seed", "2", "--languages", "en", "sw", "--out", "there", "--fast"])
    assert (settings.steps, settings.seeds, settings.languages, str(out)) == (7, (2,), ("en", "sw"), "there")
    assert settings.scratch == FAST.scratch
    with pytest.raises(SystemExit):
        parse_demo(["--steps", "0"])
    assert "--steps: expected a positive number, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("languages", "message"), [(["en", "xx"], "languages: .*xx"), (["de"], "languages: .*'en'"), (["en"], "languages:")]
)
def test_bad_languages(tmp_path, languages, message):
    with pytest.raises(SystemExit, match=f"train.demo: {message}"):
        main(["--fast", "--out", str(tmp_path), "--languages", *languages])
