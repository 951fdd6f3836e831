"""train.evaluate: its options, the names of an earlier version, and what is refused."""

import json
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'cc-tuning[eval]')")

from evaluation_data import options, write_both, write_model
from rich.console import Console

from train.evaluate import EvaluateArguments, chosen_modes, main
from train.evaluation.runs import Runs, fingerprint


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_both(tmp_path_factory.mktemp("evaluate"))


@pytest.mark.parametrize(
    ("mode", "baseline", "modes", "told"),
    [
        (None, False, ["off", "matrix"], []),
        (None, True, ["vanilla", "matrix"], []),
        ("vanilla,connected", False, ["off", "matrix"], ["vanilla is now off", "connected is now matrix"]),
        ("connected", False, ["matrix"], ["connected is now matrix"]),
        ("vanilla", False, ["off"], ["vanilla is now off"]),
        ("vanilla,connected", True, ["vanilla", "matrix"], ["connected is now matrix"]),
        ("matrix, off", True, ["off", "matrix"], []),
    ],
)
def test_names_of_an_earlier_version(root, mode, baseline, modes, told):
    console = Console(record=True, width=80)
    given = options(root, root / "unused", mode=mode, baseline="somewhere" if baseline else None)
    assert chosen_modes(given, console) == modes
    shown = console.export_text()
    assert all(f"--mode {part}: " in shown for part in told)
    assert shown.count("is now") == len(told)


def test_a_model_without_a_connection_is_vanilla(tmp_path):
    plain = write_model(tmp_path / "plain", patched=False)
    console = Console(record=True, width=80)
    assert chosen_modes(EvaluateArguments(str(plain)), console) == ["vanilla"]
    for mode in ("off", "matrix", "vanilla,connected"):
        with pytest.raises(
            ValueError, match=r"mode: .*plain was trained with --method vanilla, it answers in the mode va"
        ):
            chosen_modes(EvaluateArguments(str(plain), mode=mode), console)


def test_command_line(root, tmp_path, capsys):
    config = tmp_path / "evaluate.yaml"
    config.write_text(f"model: {root / 'model'}\ndata: {root / 'data'}\nbenchmarks: xlsum\nlanguages: fr\n")
    main([str(config), "--out", str(tmp_path / "out"), "--max_new_tokens", "2", "--device", "cpu"])
    assert "XLSum: ROUGE-L (percent)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": ""}, "model: expected --model"),
        ({"model": "nowhere"}, "model: expected the output folder of train.sft"),
        ({"model": "{bare}"}, "connection: expected a patched model with a Transform Matrix"),
        ({"mode": "english"}, "mode: expected some of vanilla, off, matrix, got 'english'"),
        ({"mode": ""}, "mode: expected some of vanilla, off, matrix, got ''"),
        ({"benchmarks": "xnli,glue"}, "benchmarks: expected some of xnli, .*, got 'glue'"),
        ({"benchmarks": "xnli", "languages": "ja"}, "languages: expected some of ar, .*, got 'ja'"),
        ({"data": "nowhere"}, "data: expected a file xnli.jsonl in 'nowhere', found none"),
        ({"limit": 0}, "limit: expected a positive number, got 0"),
        ({"batch_size": 0}, "batch_size: expected a positive number, got 0"),
        (
            {"benchmarks": "xlsum", "max_length": 128},
            "max_length: expected more than the 128 tokens of an answer .*got 128",
        ),
        ({"engine_options": "{}"}, "engine_options: expected none with --engine hf, got '{}'"),
        ({"engine": "vllm", "device": "cpu"}, "device: expected auto with --engine vllm, which finds its own, got 'cp"),
        ({"engine": "vllm", "engine_options": '{"seed": 1}'}, "engine_options: expected some of tensor.*, got 'seed'"),
        ({"engine": "vllm", "engine_options": "8"}, "engine_options: expected a JSON object, got '8'"),
        ({"engine": "vllm"}, "vllm: not installed, or it cannot be loaded"),
    ],
)
def test_errors(root, tmp_path, monkeypatch, changed, message):
    monkeypatch.setitem(sys.modules, "vllm", None)
    if "{bare}" in changed.values():
        changed = {"model": str(write_model(tmp_path / "bare", matrix=False))}
    arguments = {"model": str(root / "model"), "data": str(root / "data"), "out": str(tmp_path / "out")}
    arguments |= {"benchmarks": "xnli", **changed}
    with pytest.raises(SystemExit, match=f"train.evaluate: {message}"):
        main([part for name, value in arguments.items() for part in (f"--{name}", str(value))])


class Task:
    """What `Runs` reads of a task that generates."""

    def __init__(self, tokens, prompt="a"):
        self.config = SimpleNamespace(generation_kwargs={"max_gen_toks": tokens} if tokens else None)
        self.docs = [{"prompt": prompt, "answers": ["b"]}]

    def test_docs(self):
        return self.docs


def test_the_option_that_changed_is_named(tmp_path):
    runs = Runs(tmp_path, {"model": "m"})
    path = runs.path("xlsum", "fr", "off")
    path.parent.mkdir(parents=True)

    def keep(**settings):
        path.write_text(json.dumps({"settings": {"model": "m", **settings}, "results": []}))

    keep(max_new_tokens=4, rows=fingerprint(Task(4)))
    assert runs.saved("xlsum", "fr", "off", Task(4)) is not None
    with pytest.raises(ValueError, match=r"fr\.off\.json was made with max_new_tokens=4, now it is 5; choose"):
        runs.saved("xlsum", "fr", "off", Task(5))
    with pytest.raises(ValueError, match="was made with rows='"):
        runs.saved("xlsum", "fr", "off", Task(4, prompt="other"))
    keep(rows=fingerprint(Task(4)))  # by an earlier version
    assert runs.saved("xlsum", "fr", "off", Task(4)) is not None
    with pytest.raises(ValueError, match="was made with rows or max_new_tokens='"):
        runs.saved("xlsum", "fr", "off", Task(5))
    keep(max_new_tokens=None, rows=fingerprint(Task(None)))
    assert runs.saved("xlsum", "fr", "off", Task(None)) is not None
