"""docs/evaluation.md: its commands and its snippet run; and the examples in the docstrings."""

import doctest
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'cc-tuning[eval]')")

from evaluation_data import write_data, write_model

from cc_model.integrations.lm_eval import main as lm_eval_command
from train.evaluate import main as evaluate
from train.evaluation.benchmarks import BENCHMARKS, languages_of

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
MODULES = ["benchmarks", "hub", "intervals", "rows", "runs", "scorers", "summary"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the document takes for granted: a fitted model, rows, and the checkout's task files."""
    write_model(tmp_path / "runs" / "mine")
    write_data(tmp_path / "my-rows", count=2)
    (tmp_path / "train").symlink_to(ROOT / "train")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands(folder, monkeypatch, capsys):
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.replace("\\\n", "").splitlines()]
    assert [command[:3] for command in commands] == [
        ["python", "-m", "train.evaluate"],
        ["python", "-m", "cc_model.integrations.lm_eval"],
    ]
    evaluate(commands[0][3:])
    assert (folder / "runs" / "evaluation" / "differences.png").is_file()
    monkeypatch.setattr("sys.argv", ["lm_eval", *commands[1][3:], "--output_path", "logged", "--log_samples"])
    lm_eval_command()
    assert "cc_xnli_sw" in capsys.readouterr().out
    (samples,) = (folder / "logged").rglob("samples_cc_xnli_sw*.jsonl")
    logged = {row["doc_id"]: row for row in map(json.loads, samples.read_text(encoding="utf-8").splitlines())}
    evaluate([*commands[0][3:], "--benchmarks", "xnli", "--languages", "sw", "--mode", "matrix"])
    saved = json.loads((folder / "runs" / "evaluation" / "rows" / "xnli" / "sw.matrix.json").read_text())["results"]
    for number, row in enumerate(saved):  # both commands score the same
        scores = [float(score[0][0]) for score in logged[number]["resps"]]
        assert scores == pytest.approx(row["logprobs"], abs=1e-3)
        assert logged[number]["acc"] == row["acc"]


def test_snippet(folder):
    (source,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict = {}
    exec(compile(source, "docs/evaluation.md", "exec"), names)
    assert set(names["results"]["results"]["cc_mkqa_ko"]) >= {"f1,none", "exact_match,none"}
    assert names["lm"].connection is False


def test_the_table_of_languages():
    for name, benchmark in BENCHMARKS.items():
        assert f"| {benchmark.title} | {' '.join(languages_of(name))} |" in TEXT


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    result = doctest.testmod(
        importlib.import_module(f"train.evaluation.{module}"), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert result.attempted > 0
    assert result.failed == 0
