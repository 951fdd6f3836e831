"""train.sft's options for simulated training; tests/model/integrations/test_cc_trainer.py has the callback itself."""

import json

import pytest
import torch
from transformers import Trainer

from cc_model import from_pretrained
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


def test_sft_trains_saves_and_resumes(common, tmp_path, monkeypatch):
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
    places, load = [], Trainer._load_from_checkpoint

    def loading(trainer, *args, **kwargs):
        places.append(trainer.model.cc.transform_matrix.shape)  # without it FSDP2 leaves the checkpoint's out, or fails
        load(trainer, *args, **kwargs)

    monkeypatch.setattr(Trainer, "_load_from_checkpoint", loading)
    sft([*common, *saving, "--output_dir", str(parts), "--max_steps", "6", "--resume_from_checkpoint", "true"])
    assert places == [(32, 32)]
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
