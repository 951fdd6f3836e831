"""train.fit_transform and train.generate on a model that train.sft wrote."""

import json

import pytest
import torch
from rich.console import Console

from cc_model import connection_disabled, from_pretrained
from train.common.answers import generate_answers
from train.common.models import REPORT_FILE, load_trained
from train.fit_transform import main as fit
from train.generate import GenerateArguments, run_generate
from train.generate import main as generate
from train.sft import main as sft

SCRATCH = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
QUESTIONS = [
    {"instruction": "Wie heißt die Währung?\nJapan", "instruction_en": "Which currency?\nJapan", "output": "Yen"},
    {"instruction": "Währung?", "instruction_en": ""},
    {"instruction": "[bold]Wie heißt[/bold] die Währung dieses Landes?\nSchweiz"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained and fitted model; the vanilla one is in `vanilla` beside it."""
    root = tmp_path_factory.mktemp("runs")
    common = ["--scratch", json.dumps({**SCRATCH, "num_attention_heads": 2, "num_key_value_heads": 2}), "--use_cpu"]
    common += ["--dataset", "cldr", "--languages", "de", "en", "--relations", "currency", "--scratch_vocab_size", "400"]
    common += ["--max_steps", "2", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1"]
    common += ["--max_samples", "120", "--learning_rate", "0.01"]
    sft([*common, "--output_dir", str(root / "cc"), "--max_length", "80"])
    sft([*common, "--output_dir", str(root / "vanilla"), "--method", "vanilla"])
    return root / "cc"


@pytest.fixture(scope="module")
def fitted(folder):
    target = folder.parent / "fitted"
    fit(["--model", str(folder), "--output_dir", str(target), "--max_pairs", "40", "--device", "cpu"])
    return target


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return str(path)


def test_fit_uses_the_training_rows_and_saves(folder, fitted):
    report = json.loads((fitted / REPORT_FILE).read_text())
    assert report["pairs"] + report["held_out"] == 40
    assert len(report["layers"]) == 2
    matrix = from_pretrained(fitted).cc.transform_matrix
    assert matrix.shape == (32, 32)
    assert torch.isfinite(matrix).all()
    assert from_pretrained(folder).cc.transform_matrix is None  # the trained model is left as it was
    _, collator = load_trained(str(fitted), device="cpu")
    assert collator.max_length == 80


def test_fit_in_place_per_layer_and_affine(fitted, tmp_path):
    place = tmp_path / "copy"
    from shutil import copytree

    copytree(fitted, place)
    fit(["--model", str(place), "--max_pairs", "10", "--per_layer", "--affine", "--ridge", "0.1", "--holdout", "0"])
    connection = from_pretrained(place).cc
    assert connection.transform_matrix.shape == (2, 32, 32)
    assert connection.transform_bias.shape == (2, 32)


def test_generate_side_by_side(fitted, questions, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    arguments = ["--model", str(fitted), "--file", questions, "--prompt", "Hallo", "--off", "--english"]
    generate([*arguments, "--max_new_tokens", "3", "--out", str(out), "--device", "cpu"])
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["instruction"] for row in written] == ["Hallo", *(row["instruction"] for row in QUESTIONS)]
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("matrix", "off", "english", "expected", "[bold]"))
    model, collator = load_trained(str(fitted), device="cpu")
    options = {"max_new_tokens": 3, "progress": False, "batch_size": 1}
    rows = [{"instruction": "Hallo"}, *QUESTIONS]
    assert [row["matrix"] for row in written] == generate_answers(model, collator, rows, **options)
    assert [row["english"] for row in written] == generate_answers(model, collator, rows, pivot=True, **options)
    with connection_disabled(model):
        assert [row["off"] for row in written] == generate_answers(model, collator, rows, **options)


def test_the_connection_changes_what_is_generated(fitted):
    model, collator = load_trained(str(fitted), device="cpu")
    batch = collator.prompts(QUESTIONS[:1], pivot=False)
    logits = []
    for scale in (1.0, 50.0):
        model.cc.transform_matrix = torch.eye(32) * scale
        output = model.generate(**batch, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
        logits.append(output.logits[0])
    assert not torch.allclose(*logits, atol=1e-4)


def test_generate_without_matrix_or_connection_says_so(folder, capsys):
    for model, notice, mode in (
        (folder, "has no Transform Matrix yet", "off"),
        (folder.parent / "vanilla", "--method vanilla", "vanilla"),
    ):
        console = Console(width=200)
        answers = run_generate(GenerateArguments(str(model), ["Hallo"], max_new_tokens=2, device="cpu"), console)
        assert list(answers) == [mode]
        assert notice in capsys.readouterr().out


@pytest.mark.parametrize("way", ["--vanilla", "--vanilla=true", "yaml"])
def test_the_old_name_of_off_works_and_says_what_is_new(folder, tmp_path, capsys, way):
    arguments = ["--model", str(folder), "--prompt", "Hallo", "--max_new_tokens", "1", "--device", "cpu"]
    if way == "yaml":
        (tmp_path / "old.yaml").write_text("vanilla: true\n")
        generate([str(tmp_path / "old.yaml"), *arguments])
    else:
        generate([*arguments, way])
    shown = capsys.readouterr()
    assert "train.generate: --vanilla is now --off" in shown.err
    assert "off: the CC model without the connection" in shown.out


def test_sampling_repeats_with_its_seed(fitted):
    options = GenerateArguments(str(fitted), ["Hallo"], do_sample=True, max_new_tokens=8, device="cpu", seed=3)
    assert run_generate(options) == run_generate(options)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (fit, [], "train.fit_transform: model: expected --model"),
        (fit, ["--model", "nowhere"], "model: expected the output folder of train.sft, found no config.json"),
        (fit, ["--model", "{vanilla}"], "trained with --method vanilla, it has no connection to fit"),
        (fit, ["--model", "{cc}", "--batch_size", "0"], "expected batch_size and max_pairs above 0, got 0"),
        (fit, ["--model", "{cc}", "--holdout", "1"], "holdout"),
        (generate, [], "train.generate: model: expected --model"),
        (generate, ["--model", "{cc}"], "prompt: expected --prompt or --file with at least one prompt"),
        (generate, ["--model", "{cc}", "--file", "nowhere"], "file: found no file 'nowhere'"),
        (generate, ["--model", "{cc}", "--prompt", "Hi", "--english"], "english: expected a model trained with"),
    ],
)
def test_bad_arguments(folder, command, arguments, message):
    names = {"cc": str(folder), "vanilla": str(folder.parent / "vanilla")}
    with pytest.raises(SystemExit, match=message):
        command([argument.format(**names) for argument in arguments])


@pytest.mark.parametrize("content", ["{not json", "[1]"])
def test_bad_prompt_file(folder, tmp_path, content):
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{{"instruction": "Hallo"}}\n{content}\n')
    with pytest.raises(SystemExit, match=r"file: expected one JSON object per line, line 2 of .*bad.jsonl is"):
        generate(["--model", str(folder), "--file", str(path)])


def test_help(capsys):
    for command in (fit, generate):
        with pytest.raises(SystemExit) as ended:
            command(["--help"])
        assert ended.value.code == 0
        assert "--model" in capsys.readouterr().out
