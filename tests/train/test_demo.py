"""The demo in a toy size: its files, and that the report says what the numbers say."""

import json
import re

import pytest
from PIL import Image

from train.demo.__main__ import FAST, main, parse_demo
from train.demo.answers import MODES
from train.demo.report import render
from train.experiment.statistics import by_question
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


def test_accuracy_table_is_the_json(demo):
    out, results = demo
    table = tables((out / "report.md").read_text(encoding="utf-8"))[0]
    assert table[0] == ["language", "questions", *MODES]
    assert [row[0] for row in table[1:]] == list(results["accuracy"])
    for row in table[1:]:
        line = results["accuracy"][row[0]]
        assert int(row[1]) == line["questions"]
        for mode, cell in zip(MODES, row[2:], strict=True):
            assert float(cell.removesuffix(" %")) == pytest.approx(100 * line[mode] / line["questions"], abs=0.05)


def test_all_is_the_sum_of_the_languages(demo):
    _, results = demo
    *languages, total = results["accuracy"].values()
    assert list(results["accuracy"])[-1] == "all"
    assert all(total[key] == sum(line[key] for line in languages) for key in total)
    assert total["questions"] == results["data"]["questions"] > 0
    assert all(0 <= line[mode] <= line["questions"] for line in languages for mode in MODES)


def test_other_tables_are_the_json(demo):
    out, results = demo
    _, answers, decisions, layers, seconds = tables((out / "report.md").read_text(encoding="utf-8"))
    assert [row[2] for row in answers[1:]] == [sample["expected"] for sample in results["samples"]]
    by_step = dict(zip(results["cc"]["step"], results["cc"]["decisions"], strict=True))
    for step, *cells in decisions[1:]:
        assert [float(cell.removesuffix(" %")) for cell in cells] == pytest.approx(
            [100 * share for share in by_step[int(step)]], abs=0.5
        )
    quality = results["matrix"]
    for row, line in zip(layers[1:], [quality["overall"], *quality["layers"]], strict=True):
        assert [float(cell) for cell in row[1:]] == pytest.approx(
            [line["r2"], line["cosine"], line["cosine_before"]], abs=5e-4
        )
    assert {name: float(cell) for name, cell in seconds[1:]} == pytest.approx(results["seconds"], abs=0.05)


def test_histograms_and_losses(demo):
    _, results = demo
    assert results["vanilla"]["step"] == results["cc"]["step"] == list(range(1, 15))
    assert results["vanilla"]["decisions"] == []
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
    assert (out / "vanilla" / "model.safetensors").is_file()
    report = (out / "report.md").read_text(encoding="utf-8")
    assert str(out) not in report


def made_up(results, **right):
    """The results as if so many of 400 questions had been answered in each mode, the same ones first."""
    correct = {mode: "1" * right[mode] + "0" * (400 - right[mode]) for mode in MODES}
    line = {"questions": 400, **right}
    return {**results, "correct": correct, "accuracy": {"de": line, "all": line}}


def test_words_follow_the_numbers(demo):
    _, results = demo
    right = {"guess": 100, "vanilla": 120, "matrix": 119, "english": 360, "off": 20}
    method = "the method as a user would apply it (with the matrix)"
    same = render(made_up(results, **right))
    assert f"{method} is **not clearly different** from plain fine-tuning" in same
    assert "(−0.2 ± 0.5" not in same
    assert "what a user gains over plain fine-tuning: −0.2 ± 0.5 points: no clear difference" in same
    assert "*english* against *vanilla*, what the connection brings when the English question is there: +60.0 ±" in same
    for matrix, words in ((300, "answers clearly more questions than"), (20, "is **clearly worse** than")):
        assert f"{method} {words} plain" in render(made_up(results, **{**right, "matrix": matrix}))


def test_the_marks_are_what_the_table_counts(demo):
    _, results = demo
    for mode in MODES:
        assert results["correct"][mode].count("1") == results["accuracy"]["all"][mode]
        assert len(results["correct"][mode]) == results["data"]["questions"]
    found = by_question(results["correct"]["guess"], results["correct"]["vanilla"])
    shares = [100 * results["accuracy"]["all"][mode] / results["data"]["questions"] for mode in ("guess", "vanilla")]
    assert found.mean == pytest.approx(shares[0] - shares[1])


def test_the_model_that_it_leaves_answers_with_train_generate(demo):
    out, results = demo
    sample = results["samples"][0]
    question = sample["question"]
    answers = {}
    for name in ("cc", "vanilla"):
        options = GenerateArguments(str(out / name), [question], off=True, device="cpu", max_new_tokens=14)
        answers |= {mode: texts[0] for mode, texts in run_generate(options).items()}
    assert set(answers) == {"matrix", "off", "vanilla"}
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
