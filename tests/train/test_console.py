"""No command loses its work to what it shows: results are written first, and every console will do."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from train.common.console import open_console, say
from train.common.progress import RichProgress
from train.data import build_rows, cldr, udhr
from train.demo.__main__ import main as demo
from train.experiment.__main__ import main as experiment
from train.fit_transform import main as fit
from train.generate import GenerateArguments, answer_table, run_generate
from train.generate import main as generate
from train.sft import main as sft
from train.smollm2 import main as smollm2

ROOT = Path(__file__).parents[2]
SHAPE = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
SHAPE |= {"num_attention_heads": 2, "num_key_value_heads": 2}
QUESTIONS = [
    {"instruction": "日本の通貨は？", "instruction_en": "Currency?", "output": 4, "note": "\ud800"},
    {"instruction": "", "output": None},
    {"instruction": "[/b] a\u2028b", "output": {"any": ["thing"]}},
    {"instruction": None, "messages": [{"role": "user", "content": "[bold]Hallo"}]},
]
EXPERIMENT = {
    **{"scratch": SHAPE, "vocab_size": 400, "languages": ["en", "ja"], "relations": ["currency"], "seeds": [0]},
    **{"steps": 2, "batch_size": 4, "max_length": 96, "fit_pairs": 20, "questions": 4},
    "conditions": {"vanilla": {"method": "vanilla"}, "cc": {}, "[/日本]": {"hard": False}},
}


@pytest.fixture(params=["ascii", "latin-1", "cp1252"])
def narrow(request, monkeypatch):
    """Call it to print to an output of another encoding from then on; it gives what tells what was shown."""

    def start():
        stream = io.TextIOWrapper(io.BytesIO(), encoding=request.param, write_through=True)
        monkeypatch.setattr(sys, "stdout", stream)
        return lambda: stream.buffer.getvalue().decode(request.param)

    return start


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Rows in Japanese, questions of all kinds, and a fitted model in a folder with an awkward name."""
    root = tmp_path_factory.mktemp("console")
    rows = [row for row in build_rows(["en", "ja"], ["currency"])["train"] if row["language"] == "ja"][:24]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    (root / "tiny.yaml").write_text(yaml.safe_dump(EXPERIMENT, allow_unicode=True), encoding="utf-8")
    sft(training(root, root / "モデル [/x]"))
    fit(["--model", str(root / "モデル [/x]"), "--device", "cpu"])
    return root


def training(root, out):
    shape = ["--scratch", json.dumps(SHAPE), "--scratch_vocab_size", "400", "--max_length", "64", "--use_cpu"]
    steps = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1"]
    return [*shape, *steps, "--dataset", str(root / "rows.jsonl"), "--output_dir", str(out), "--logging_steps", "1"]


def test_training_and_fitting(root, tmp_path, narrow):
    shown = narrow()
    out = tmp_path / "出力 [/x]"
    sft(training(root, out))
    fit(["--model", str(out), "--device", "cpu"])
    assert (out / "history.json").is_file()
    assert (out / "transform_report.json").is_file()
    assert "cc: step 2/2  loss" in shown()
    assert "[/x]" in shown()


def test_generating(root, tmp_path, narrow):
    shown = narrow()
    out = tmp_path / "出力 [/x]" / "answers.jsonl"
    questions = str(root / "questions.jsonl")
    generate(["--model", str(root / "モデル [/x]"), "--file", questions, "--off", "--out", str(out), "--device", "cpu"])
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n")[:-1]]
    kept = [{name: value for name, value in row.items() if name not in ("matrix", "off")} for row in rows]
    assert kept == QUESTIONS
    assert "[bold]Hallo" in shown()
    # What it wrote is read back, by this command and as data.
    again = str(tmp_path / "again.jsonl")
    generate(["--model", str(root / "モデル [/x]"), "--file", str(out), "--out", again, "--device", "cpu"])
    assert len(Path(again).read_text(encoding="utf-8").split("\n")) == len(QUESTIONS) + 1


def test_evaluating(tmp_path, narrow):
    shown = narrow()
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'cc-tuning[eval]')")
    from evaluation_data import write_data, write_model

    from train.evaluate import main as evaluate

    write_data(tmp_path / "data", count=1)
    write_model(tmp_path / "モデル")
    chosen = ["--benchmarks", "mkqa", "--languages", "ja", "--max_new_tokens", "2", "--device", "cpu"]
    out = tmp_path / "出力 [/x]"
    evaluate(["--model", str(tmp_path / "モデル"), "--data", str(tmp_path / "data"), "--out", str(out), *chosen])
    assert {"results.json", "results.md", "differences.png"} <= {file.name for file in out.iterdir()}
    assert "MKQA" in shown()


def test_the_demo(tmp_path, narrow):
    shown = narrow()
    demo(["--fast", "--steps", "2", "--out", str(tmp_path / "出力")])
    assert (tmp_path / "出力" / "report.md").is_file()
    assert "Held-out accuracy" in shown()


def test_the_experiment(root, tmp_path, narrow):
    """Names of conditions are text, also where they look like markup."""
    shown = narrow()
    out = tmp_path / "出力 [/x]"
    experiment([str(root / "tiny.yaml"), "--out", str(out)])
    assert len((out / "results.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    assert "[/日本]" in (out / "report.md").read_text(encoding="utf-8")
    assert "3 of 3 jobs" not in shown()
    experiment([str(root / "tiny.yaml"), "--out", str(out), "--report"])
    experiment([str(root / "tiny.yaml"), "--prepare", str(tmp_path / "日本")])
    assert (tmp_path / "日本" / "rows.jsonl").is_file()


def test_the_data(tmp_path, narrow):
    shown = narrow()
    cldr.main(["--out", str(tmp_path / "出力 [/x]")])
    udhr.main(["--out", str(tmp_path / "日本")])
    assert shown().count("wrote") == 4


def test_help_is_shown(narrow):
    shown = narrow()
    for command in (sft, fit, generate, demo, experiment, smollm2, cldr.main, udhr.main):
        with pytest.raises(SystemExit) as ended:
            command(["--help"])
        assert ended.value.code == 0
    assert shown().count("usage: ") == 8


def test_a_prompt_typed_where_the_locale_is_not_utf8(root):
    """Python has the bytes of the command line as surrogates then."""
    (root / "model").symlink_to(root / "モデル [/x]")
    command = [sys.executable, "-m", "train.generate", "--model", "model", "--device", "cpu"]
    plain = {
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "LC_ALL": "C",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*command, "--prompt", "日本", "--max_new_tokens", "2", "--out", "answers.jsonl"],
        **{"env": plain, "cwd": root, "capture_output": True, "check": False},
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert json.loads((root / "answers.jsonl").read_text(encoding="utf-8"))["instruction"] == "日本"


@pytest.mark.parametrize("failing", ["answer_table", "say"])
def test_answers_are_written_before_they_are_shown(root, tmp_path, monkeypatch, failing):
    def fail(*_):
        raise RuntimeError("the terminal is gone")

    monkeypatch.setattr(f"train.generate.{failing}", fail)
    options = GenerateArguments(str(root / "モデル [/x]"), ["Hallo"], out=str(tmp_path / "out.jsonl"), device="cpu")
    with pytest.raises(RuntimeError, match="the terminal is gone"):
        run_generate(options)
    assert "matrix" in json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))


def test_a_matrix_is_saved_before_it_is_shown(root, tmp_path, monkeypatch):
    from train import fit_transform

    monkeypatch.setattr(fit_transform, "report_table", lambda report: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(["--model", str(root / "モデル [/x]"), "--output_dir", str(tmp_path / "new"), "--device", "cpu"])
    assert (tmp_path / "new" / "transform_report.json").is_file()


def test_scores_are_written_before_they_are_shown(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'cc-tuning[eval]')")
    from evaluation_data import write_data, write_model

    from train.evaluate import EvaluateArguments, run_evaluate

    monkeypatch.setattr("train.evaluation.summary.tables", lambda summary: 1 / 0)
    data = {"benchmarks": "xnli", "languages": "sw", "data": str(write_data(tmp_path / "data", count=1))}
    model = str(write_model(tmp_path / "model"))
    with pytest.raises(ZeroDivisionError):
        run_evaluate(EvaluateArguments(model, out=str(tmp_path / "out"), device="cpu", **data))
    assert (tmp_path / "out" / "differences.png").is_file()


def test_results_of_the_demo_are_written_before_they_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("train.demo.__main__.plot", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        demo(["--fast", "--steps", "2", "--out", str(tmp_path)])
    assert {"results.json", "report.md"} <= {file.name for file in tmp_path.iterdir()}


@pytest.mark.parametrize("command", ["sft", "fit", "generate", "evaluate", "demo", "experiment"])
def test_a_place_that_cannot_be_written_is_told_before_the_work(root, tmp_path, command):
    (tmp_path / "file").write_text("")
    place, model = str(tmp_path / "file" / "out"), str(root / "モデル [/x]")
    runs = {
        "sft": (sft, training(root, place), "output_dir"),
        "fit": (fit, ["--model", model, "--output_dir", place, "--device", "cpu"], "output_dir"),
        "generate": (
            generate,
            ["--model", model, "--prompt", "a", "--out", place + "/a.jsonl", "--device", "cpu"],
            "out",
        ),
        "demo": (demo, ["--fast", "--out", place], "out"),
        "experiment": (experiment, [str(root / "tiny.yaml"), "--out", place], "out"),
    }
    if command == "evaluate":
        pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'cc-tuning[eval]')")
        from train.evaluate import main as evaluate

        runs["evaluate"] = (evaluate, ["--model", model, "--data", str(tmp_path), "--out", place], "out")
    run, arguments, option = runs[command]
    with pytest.raises(SystemExit, match=f"{option}: cannot write into the folder"):
        run(arguments)


def test_rows_of_every_kind_are_shown():
    table = answer_table(QUESTIONS, {"matrix": ["a"] * len(QUESTIONS)})
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(table)
    shown = console.export_text()
    assert all(text in shown for text in ("{'any': ['thing']}", "[bold]Hallo", "日本の通貨は？", "[/b] a", "4"))


def test_a_console_of_its_own_is_made_safe_too():
    """Also one whose errors are surrogate escapes, which fail for ordinary characters."""
    for errors in ("strict", "surrogateescape"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=errors, write_through=True)
        say(open_console(Console(file=stream, width=80)), "日本 [/x] \udce6")
        assert stream.buffer.getvalue() == b"?? [/x] ?\n"
    ready = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    assert open_console(Console(file=ready)).file.errors == "backslashreplace"
    assert RichProgress("t", Console(file=stream)).blocks.isascii()
    assert not RichProgress("t", Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))).blocks.isascii()
