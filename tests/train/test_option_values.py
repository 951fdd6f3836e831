"""Values that an option cannot have: one line that names the option, what was expected and what came."""

import io
import json
import math
import re

import pytest
import torch
from rich.console import Console

from cc_model import patch_model
from cc_model.testing import tiny_model
from train.common import models
from train.common.arguments import DataArguments
from train.common.models import chosen_device, load_trained, new_tokenizer
from train.distil import main as distil
from train.evaluate import main as evaluate
from train.experiment import translation_order
from train.fit_transform import FitArguments, run_fit
from train.fit_transform import main as fit
from train.generate import GenerateArguments, read_prompts
from train.generate import main as generate
from train.sft import main as sft


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CC model, without training."""
    folder = tmp_path_factory.mktemp("model")
    patch_model(tiny_model("llama", vocab_size=300)).save_pretrained(folder)
    new_tokenizer([{"instruction": "Land?"}], 300).save_pretrained(folder)
    (folder / "prompts.jsonl").write_text('{"instruction": "Land?", "instruction_en": "Country?"}\n')
    return folder


def command_of(main, folder, tmp_path):
    """A command line that is right without the options of the test."""
    if main is distil:
        prompts, out = str(folder / "prompts.jsonl"), str(tmp_path / "out")
        return ["--teacher", str(folder), "--prompts", prompts, "--output_dir", out, "--answers_only"]
    data = ["--prompt", "Hi"] if main is generate else ["--dataset", str(folder / "prompts.jsonl")]
    return ["--model", str(folder), *data]


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (generate, ["--device", "foo"], "train.generate: device: expected one of auto, cpu.* on this machine, got 'fo"),
        (fit, ["--device", "foo"], "train.fit_transform: device: expected one of auto, cpu.* machine, got 'foo'"),
        (distil, ["--device", "cpu:99"], "train.distil: device: expected one of auto, cpu.* machine, got 'cpu:99'"),
        (generate, ["--device", "meta"], "train.generate: device: expected one of auto, cpu.* machine, got 'meta'"),
        (generate, ["--num_beams", "0"], "train.generate: num_beams: expected a positive number, got 0"),
        (generate, ["--max_new_tokens", "0"], "train.generate: max_new_tokens: expected a positive number, got 0"),
        (generate, ["--batch_size", "0"], "train.generate: batch_size: expected a positive number, got 0"),
        (generate, ["--max_prompts", "-1"], "train.generate: max_prompts: expected a positive number, got -1"),
    ],
)
def test_values_that_a_command_refuses(folder, tmp_path, main, arguments, message):
    with pytest.raises(SystemExit, match=f"^{message}") as ended:
        main([*command_of(main, folder, tmp_path), *arguments])
    assert "\n" not in str(ended.value)


@pytest.mark.parametrize(
    ("main", "option"),
    [(generate, "--dtype"), (fit, "--dtype"), (evaluate, "--dtype"), (distil, "--teacher_dtype")],
)
def test_a_dtype_that_is_none(capsys, main, option):
    with pytest.raises(SystemExit):
        main([option, "foo"])
    assert re.search(rf"error: argument {option}.*: invalid choice: 'foo' \(choose from", capsys.readouterr().err)
    with pytest.raises(ValueError, match="dtype: expected one of auto, float32, bfloat16, float16, got 'foo'"):
        load_trained("nowhere", dtype="foo")


@pytest.mark.parametrize("main", [sft, generate])
def test_a_yaml_file_that_is_not_utf8(tmp_path, capsys, main):
    path = tmp_path / "latin.yaml"
    path.write_bytes("# eins\nmodel: für\n".encode("latin-1"))
    with pytest.raises(SystemExit):
        main([str(path)])
    assert f"error: config: expected UTF-8 text, line 2 of {path} is not" in capsys.readouterr().err


def test_devices_of_a_machine(monkeypatch):
    assert chosen_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(models, "best_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert [str(chosen_device(name)) for name in ("auto", "cpu", "cuda", "cuda:1")] == ["cuda", "cpu", "cuda", "cuda:1"]
    for name in ("cuda:2", "mps", "foo"):
        with pytest.raises(ValueError, match=f"device: expected one of auto, cpu, cuda on this machine, got '{name}'"):
            chosen_device(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--translations", "0"], r"--translations: expected numbers from 1 to 16, rows of a step, got \[0\]"),
        (
            ["--translations", "4", "17"],
            r"--translations: expected numbers from 1 to 16, rows of a step, got \[4, 17\]",
        ),
        (["--seeds", "0"], "--seeds: expected a positive number, got 0"),
        (["--steps", "-3"], "--steps: expected a positive number, got -3"),
    ],
)
def test_orders_that_cannot_be_measured(capsys, arguments, message):
    with pytest.raises(SystemExit):
        translation_order.main(arguments)
    assert re.search(message, capsys.readouterr().err)


def test_prompts_of_the_command_line_are_answered_before_those_of_the_file(tmp_path):
    (tmp_path / "prompts.txt").write_text("b\nc\nd\n")
    options = GenerateArguments(prompt=["a"], file=str(tmp_path / "prompts.txt"), max_prompts=2)
    assert [row["instruction"] for row in read_prompts(options)] == ["a", "b", "c"]


def test_a_quality_that_is_undefined_is_null_and_a_dash(folder, tmp_path):
    """Of one held-out pair: its activations have no spread."""
    rows = "".join(
        json.dumps({"instruction": f"Land {n}?", "instruction_en": f"Country {n}?"}) + "\n" for n in range(10)
    )
    (tmp_path / "pairs.jsonl").write_text(rows)
    console = Console(record=True, width=100, file=io.StringIO())
    options = FitArguments(str(folder), str(tmp_path / "out"), device="cpu", ridge=1.0)
    report = run_fit(options, DataArguments(dataset=str(tmp_path / "pairs.jsonl")), console)
    assert (report.held_out, math.isnan(report.overall.r2)) == (1, True)

    def refuse(name):
        raise ValueError(name)  # NaN is no JSON

    kept = json.loads((tmp_path / "out" / "transform_report.json").read_text(), parse_constant=refuse)
    assert kept["overall"]["r2"] is None
    assert kept["overall"]["cosine"] == pytest.approx(report.overall.cosine)
    shown = console.export_text()
    assert "nan" not in shown
    assert re.search(r"all +│ +– │ +\d\.\d{3}", shown)
