"""train.evaluate on every benchmark and language: what it computes, shows, keeps and continues."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'cc-tuning[eval]')")

from engine_stand_in import stand_in
from evaluation_data import made_rows, options, write_both, write_model
from PIL import Image
from rich.console import Console

from cc_model import connection_disabled
from train.common.answers import generate_answers
from train.common.models import load_trained
from train.evaluate import EvaluateArguments, load_lm, run_evaluate
from train.evaluation.benchmarks import BENCHMARKS, languages_of
from train.evaluation.runs import Runs
from train.evaluation.scorers import exact_match, f1, rouge_l

SAMPLE = Path(__file__).parents[3] / "shared" / "eval_sample"
MODES = ("off", "matrix")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_both(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def whole(root):
    """Everything, once."""
    console = Console(record=True, width=80)
    run_evaluate(options(root, root / "whole"), console)
    return root / "whole", json.loads((root / "whole" / "results.json").read_text()), console.export_text()


def result(out, benchmark, language, mode):
    return json.loads((out / "rows" / benchmark / f"{language}.{mode}.json").read_text(encoding="utf-8"))


def test_every_row_of_every_language_is_scored(whole):
    out, results, _ = whole
    assert list(results["benchmarks"]) == list(BENCHMARKS)
    for benchmark in BENCHMARKS:
        for language in languages_of(benchmark):
            for mode in MODES:
                found = result(out, benchmark, language, mode)["results"]
                assert [row["id"] for row in found] == ["0", "1", "2"]
                assert all(0 <= row[name] <= 1 for row in found for name in BENCHMARKS[benchmark].metrics)
        lines = results["benchmarks"][benchmark]["lines"]
        assert [line["language"] for line in lines] == [*languages_of(benchmark), "mean"]
        assert [line["rows"] for line in lines] == [3] * 10 + [30]


@torch.no_grad()
def test_choices_are_scored_after_the_trained_prompt(whole, root):
    """Every choice with a forward of its own over the collator's row, connected at the last prompt token."""
    out, _, _ = whole
    model, collator = load_trained(str(root / "model"), "cpu")
    for benchmark, language in (("xnli", "th"), ("xstorycloze", "te"), ("mmmlu", "yo")):
        choices = BENCHMARKS[benchmark].choices
        saved = {mode: result(out, benchmark, language, mode)["results"] for mode in MODES}
        for number, row in enumerate(made_rows(benchmark, language, 3)):
            for mode in MODES:
                expected = []
                for choice in choices:
                    batch = collator([{"instruction": row["prompt"], "output": choice}])
                    labels = batch.pop("labels")[0]
                    inputs = {"input_ids": batch["input_ids"], "connection_index": batch["connection_index"]}
                    if mode == "matrix":
                        logits = model(**inputs).logits[0]
                    else:
                        with connection_disabled(model):
                            logits = model(inputs["input_ids"]).logits[0]
                    at = (labels != -100).nonzero()[:-1, 0]  # without the end of the turn
                    expected.append(float(logits.log_softmax(-1)[at - 1, labels[at]].sum()))
                found = saved[mode][number]
                assert found["logprobs"] == pytest.approx(expected, abs=1e-3)
                assert found["answer"] == choices[int(np.argmax(expected))]
                assert found["acc"] == float(found["answer"] == row["answer"])


@pytest.mark.parametrize("task", ["mkqa ja", "xquad ar", "xlsum hi"])
def test_answers_are_generated_as_by_train_generate(whole, root, task):
    benchmark, language = task.split()
    out, _, _ = whole
    model, collator = load_trained(str(root / "model"), "cpu")
    rows = made_rows(benchmark, language, 3)
    asked = [{"instruction": row["prompt"]} for row in rows]
    answers = {"matrix": generate_answers(model, collator, asked, max_new_tokens=6, progress=False)}
    with connection_disabled(model):
        answers["off"] = generate_answers(model, collator, asked, max_new_tokens=6, progress=False)
    assert answers["off"] != answers["matrix"]
    for mode in MODES:
        for found, text, row in zip(result(out, benchmark, language, mode)["results"], answers[mode], rows):
            assert found["answer"] == text.split("\n")[0].strip()
            given = (found["answer"], row["answer"], language)
            if benchmark == "xlsum":
                assert found["rougeL"] == rouge_l(*given)
            else:
                assert (found["f1"], found["exact_match"]) == (f1(*given), exact_match(*given))


def test_summary_is_what_the_rows_say(whole):
    out, results, shown = whole
    for benchmark, part in results["benchmarks"].items():
        metric = BENCHMARKS[benchmark].metrics[0]
        *lines, mean = part["lines"]
        for line in lines:
            scores = {
                mode: np.mean([row[metric] for row in result(out, benchmark, line["language"], mode)["results"]])
                for mode in MODES
            }
            assert all(line[mode][metric] == pytest.approx(100 * scores[mode], abs=1e-3) for mode in MODES)
            middle, low, high = line["differences"]["off"]
            assert low <= middle <= high
            assert middle == pytest.approx(100 * (scores["matrix"] - scores["off"]), abs=1e-3)
        assert mean["differences"]["off"][0] == pytest.approx(
            np.mean([line["differences"]["off"][0] for line in lines]), abs=1e-3
        )
        middle, low, high = (round(value, 1) + 0.0 for value in mean["differences"]["off"])
        text = f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]"
        assert text in shown
        assert text in (out / "results.md").read_text()
    assert [line["constant"] for line in results["benchmarks"]["xstorycloze"]["lines"]] == pytest.approx([200 / 3] * 11)
    assert any(line["differences"]["off"][0] != 0 for part in results["benchmarks"].values() for line in part["lines"])
    with Image.open(out / "differences.png") as image:
        assert image.width > 1500


def test_a_killed_run_goes_on_where_it_was(root, tmp_path, monkeypatch):
    chosen = {"benchmarks": "xnli,mkqa", "languages": "zh,ar", "limit": 2}
    run_evaluate(options(root, tmp_path / "uninterrupted", **chosen))
    done, stock = [], Runs.run

    def dying(self, lm, benchmark, language, mode, task):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append((benchmark, language, mode))
        return stock(self, lm, benchmark, language, mode, task)

    monkeypatch.setattr(Runs, "run", dying)
    with pytest.raises(KeyboardInterrupt):
        run_evaluate(options(root, tmp_path / "killed", **chosen))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*.json")}
    assert len(before) == 5
    assert not (tmp_path / "killed" / "results.json").exists()
    done.clear()
    run_evaluate(options(root, tmp_path / "killed", **chosen))
    assert len(done) == 3
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())
    for path in (tmp_path / "killed" / "rows").rglob("*.json"):
        once = tmp_path / "uninterrupted" / path.relative_to(tmp_path / "killed")
        assert json.loads(path.read_text())["results"] == json.loads(once.read_text())["results"]
    assert not list((tmp_path / "killed").rglob(".writing-*"))


def test_results_of_other_settings_are_not_mixed(root, tmp_path):
    chosen = {"benchmarks": "xnli", "languages": "zh", "mode": "off"}
    run_evaluate(options(root, tmp_path, limit=1, **chosen))
    with pytest.raises(ValueError, match=r"out: .*zh.off.json was made with rows="):
        run_evaluate(options(root, tmp_path, limit=2, **chosen))
    with pytest.raises(ValueError, match="was made with dtype='auto', now it is 'bfloat16'"):
        run_evaluate(options(root, tmp_path, limit=1, dtype="bfloat16", **chosen))
    summary = run_evaluate(options(root, tmp_path, limit=2, overwrite=True, **chosen))
    (line,) = summary["xnli"]["lines"]
    assert (line["rows"], set(line)) == (2, {"language", "rows", "constant", "off"})
    assert not (tmp_path / "differences.png").exists()  # nothing to compare


def test_the_engine_is_vllm(root, whole, tmp_path, monkeypatch):
    """A stand-in for vLLM gives the same rows. Results of two engines are not mixed, those of old files are hf's."""
    engines = stand_in(monkeypatch)
    other = str(write_model(tmp_path / "plain", patched=False, seed=5))
    chosen = {"benchmarks": "xnli,xquad", "languages": "ar,zh,de", "baseline": other, "mode": "vanilla,off,matrix"}
    served = {**chosen, "engine": "vllm", "device": "auto", "engine_options": '{"block_size": 32}'}
    run_evaluate(options(root, tmp_path / "hf", **chosen))
    run_evaluate(options(root, tmp_path / "vllm", **served))
    assert [(engine.connects, engine.closed) for engine in engines] == [(True, 1), (False, 1)]
    assert engines[0].options == {
        **{"max_num_seqs": 4, "block_size": 32, "hf_overrides": {"architectures": ["CCLlamaForCausalLM"]}}
    }
    paths = sorted(path.relative_to(tmp_path / "hf") for path in (tmp_path / "hf" / "rows").rglob("*.json"))
    assert len(paths) == 15
    for path in paths:
        hf, vllm = (json.loads((tmp_path / engine / path).read_text()) for engine in ("hf", "vllm"))
        assert (hf["settings"]["engine"], vllm["settings"]["engine"]) == ("hf", "vllm")
        for row, given in zip(hf["results"], vllm["results"], strict=True):
            assert given.pop("logprobs", []) == pytest.approx(row.pop("logprobs", []), abs=1e-3)
            assert given == row
    assert json.loads((tmp_path / "vllm" / "results.json").read_text())["options"]["engine"] == "vllm"
    with pytest.raises(ValueError, match="was made with engine='vllm', now it is 'hf'"):
        run_evaluate(options(root, tmp_path / "vllm", **chosen))
    old = tmp_path / "hf" / "rows" / "xnli" / "ar.matrix.json"
    result = json.loads(old.read_text())
    del result["settings"]["engine"]
    old.write_text(json.dumps(result))
    run_evaluate(options(root, tmp_path / "hf", **chosen))
    with pytest.raises(ValueError, match=r"ar\.matrix\.json was made with engine='hf', now it is 'vllm'"):
        run_evaluate(options(root, tmp_path / "hf", **served))


def test_answers_end_where_a_turn_ends(tmp_path, monkeypatch):
    """Also where the model's own configs name no end."""
    stand_in(monkeypatch)
    folder = write_model(tmp_path / "model")
    for name in ("config.json", "generation_config.json"):
        fields = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**fields, "eos_token_id": None}))
    hf, served = (load_lm(str(folder), EvaluateArguments(str(folder), engine=engine)) for engine in ("hf", "vllm"))
    ends = served.model.generation_config.eos_token_id
    assert ends == hf.model.generation_config.eos_token_id == [served.tokenizer.eos_token_id]


def test_baseline_and_unpatched_models(root, tmp_path, capsys):
    other = write_model(tmp_path / "plain", patched=False, seed=5)
    chosen = {"benchmarks": "mmmlu", "languages": "ko"}
    compared = run_evaluate(options(root, tmp_path / "out", baseline=str(other), **chosen))
    alone = run_evaluate(
        EvaluateArguments(str(other), out=str(tmp_path / "alone"), mode="vanilla", data=str(root / "data"), **chosen)
    )
    assert compared["mmmlu"]["lines"][0]["vanilla"] == alone["mmmlu"]["lines"][0]["vanilla"]
    logprobs = [
        result(tmp_path / kind, "mmmlu", "ko", "vanilla")["results"][0]["logprobs"] for kind in ("out", "alone")
    ]
    assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-3)


def test_three_modes_side_by_side(root, tmp_path):
    """The same weights without the connection, and another model that never had one."""
    other = str(write_model(tmp_path / "vanilla", patched=False, seed=5))
    chosen = {"benchmarks": "mmmlu,mkqa", "languages": "ko", "mode": "matrix,off,vanilla", "baseline": other}
    summary = run_evaluate(options(root, tmp_path / "out", **chosen))
    (line,) = summary["mmmlu"]["lines"]
    assert set(line) == {"language", "rows", "constant", "vanilla", "off", "matrix", "differences"}
    for mode in ("vanilla", "off"):
        assert line["differences"][mode][0] == pytest.approx(line["matrix"]["acc"] - line[mode]["acc"], abs=1e-3)
    table = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    names = [
        "language",
        "rows",
        "constant",
        "vanilla",
        "off",
        "matrix",
        "matrix − vanilla [95 %]",
        "matrix − off [95 %]",
    ]
    assert f"| {' | '.join(names)} |" in table
    with Image.open(tmp_path / "out" / "differences.png") as image:
        assert image.width > 300
