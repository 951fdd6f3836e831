"""Simulated training: the callback, and train.sft's options for it."""

import json
from types import SimpleNamespace

import pytest
import torch

from cc_model import from_pretrained, patch_model
from cc_model.data.collator import ParallelCollator
from cc_model.integrations.trainer import SimulatedTraining
from train.common.models import new_model, new_tokenizer
from train.data import build_rows
from train.sft import main as sft

SCRATCH = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
ROWS = [row for row in build_rows(["en", "de"], ["currency"])["train"] if row["language"] == "de"][:24]


@pytest.fixture(scope="module")
def parts():
    """A tokenizer's collator and the function that makes a patched model."""
    tokenizer = new_tokenizer(ROWS, 400)
    return ParallelCollator(tokenizer, max_length=64), lambda: patch_model(new_model(SCRATCH, tokenizer))


def run_callback(callback, model, steps):
    """Call the callback as Trainer does; returns the share of each step and whether the matrix changed after it."""
    shares, refitted = [], []
    state = SimpleNamespace(global_step=0, max_steps=steps)
    callback.on_train_begin(None, state, None, model=model)
    for step in range(steps):
        callback.on_step_begin(None, state, None, model=model)
        shares.append(model.cc.config.simulated_share)
        before = model.cc.transform_matrix.clone()
        with torch.no_grad():
            next(model.parameters()).mul_(1.1)
        state.global_step = step + 1
        callback.on_step_end(None, state, None, model=model)
        refitted.append(not torch.equal(before, model.cc.transform_matrix))
    return shares, refitted


def test_ramp_and_refits(parts):
    collator, make = parts
    callback = SimulatedTraining(collator, ROWS, share=0.8, ramp=0.5, refit_steps=2, batch_size=10)
    shares, refitted = run_callback(callback, make(), steps=8)
    assert shares == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8])
    assert refitted == [False, True, False, True, False, True, False, False]  # none after the last step
    assert [step for step, _ in callback.fits] == [0, 2, 4, 6]
    assert all(r2 <= 1 for _, r2 in callback.fits)


def test_one_fit_and_full_share_from_the_start(parts):
    collator, make = parts
    callback = SimulatedTraining(collator, ROWS, share=1.0, ramp=0.0, refit_steps=0, fit={"per_layer": True})
    model = make()
    shares, refitted = run_callback(callback, model, steps=3)
    assert shares == [1.0, 1.0, 1.0]
    assert refitted == [False, False, False]
    assert model.cc.transform_matrix.shape == (2, 32, 32)


def test_a_resumed_matrix_is_kept(parts):
    collator, make = parts
    model = make()
    model.cc.transform_matrix = torch.eye(32)
    callback = SimulatedTraining(collator, ROWS, refit_steps=0)
    run_callback(callback, model, steps=2)
    assert torch.equal(model.cc.transform_matrix, torch.eye(32))
    assert callback.fits == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": []}, "pairs: expected rows with an English version, got none"),
        ({"share": 0.0}, r"share: expected a share in \(0, 1\], got 0\.0"),
        ({"ramp": 1.5}, r"ramp: expected a share in \[0, 1\], got 1\.5"),
        ({"refit_steps": -1}, "refit_steps: expected 0 or more, got -1"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        SimulatedTraining(None, **{"pairs": ROWS, **arguments})


@pytest.fixture
def common(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return [
        *("--scratch", json.dumps(SCRATCH), "--scratch_vocab_size", "400", "--dataset", str(path), "--use_cpu"),
        *("--max_length", "64", "--logging_steps", "1", "--per_device_train_batch_size", "4"),
        *("--gradient_accumulation_steps", "1", "--learning_rate", "0.01", "--lr_scheduler_type", "constant"),
        *("--warmup_steps", "0", "--simulated_share", "1.0", "--simulated_ramp", "0.5", "--refit_steps", "2"),
    ]


def losses(folder):
    history = json.loads((folder / "history.json").read_text())
    return [entry["loss"] for entry in history if "loss" in entry]


def test_sft_trains_saves_and_resumes(common, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    sft([*common, "--output_dir", str(whole), "--max_steps", "6"])
    model = from_pretrained(whole)
    assert model.cc.config.simulated_share == 1.0
    assert model.cc.transform_matrix is not None
    saving = ["--save_strategy", "steps", "--save_steps", "3"]
    sft([*common, *saving, "--output_dir", str(parts), "--max_steps", "6"])
    for checkpoint in parts.glob("checkpoint-6"):
        for file in checkpoint.rglob("*"):
            file.unlink()
        checkpoint.rmdir()
    sft([*common, *saving, "--output_dir", str(parts), "--max_steps", "6", "--resume_from_checkpoint", "true"])
    assert losses(parts) == losses(whole)
    resumed = from_pretrained(parts)
    assert torch.equal(resumed.cc.transform_matrix, model.cc.transform_matrix)


def test_share_changes_the_training(common, tmp_path):
    sft([*common, "--output_dir", str(tmp_path / "simulated"), "--max_steps", "5"])
    sft([*common, "--output_dir", str(tmp_path / "plain"), "--max_steps", "5", "--simulated_share", "0"])
    one, other = losses(tmp_path / "simulated"), losses(tmp_path / "plain")
    assert one[0] == other[0]  # the ramp starts with English
    assert one[-1] != other[-1]
    assert from_pretrained(tmp_path / "plain").cc.transform_matrix is None


def test_vanilla_has_nothing_to_simulate(common, tmp_path):
    with pytest.raises(SystemExit, match=r"simulated_share: expected 0 with --method vanilla, got 1\.0"):
        sft([*common, "--method", "vanilla", "--output_dir", str(tmp_path / "out"), "--max_steps", "1"])


def test_connection_dropout_reaches_the_model(common, tmp_path):
    out = tmp_path / "out"
    sft(
        [*common, "--simulated_share", "0", "--connection_dropout", "1.0", "--output_dir", str(out), "--max_steps", "2"]
    )
    assert from_pretrained(out).cc.config.connection_dropout == 1.0
    history = json.loads((out / "history.json").read_text())
    assert [entry["decision/rows"] for entry in history if "loss" in entry] == [0.0, 0.0]
