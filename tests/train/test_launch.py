"""Training and fitting in two processes that accelerate and torchrun start, against one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from train.common.arguments import DataArguments
from train.common.models import new_model, new_tokenizer
from train.data.sources import load_rows
from train.fit_transform import main as fit
from train.sft import main as sft

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "train" / "configs" / "accelerate"
SCRATCH = {
    **{"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 2},
}
DATA = {"dataset": "cldr", "languages": ["de", "en"], "relations": ["currency"], "max_samples": 40}
# Each process draws its own noise. A soft choice at a high temperature does not depend on it.
OPTIONS = {
    **{"hard": False, "temperature": 1e6, "use_cpu": True, "max_length": 64, "max_steps": 4, "logging_steps": 1},
    **{"learning_rate": 0.01, "gradient_accumulation_steps": 2, "save_strategy": "no"},
}


def launch(*command: str, timeout: int = 240) -> str:
    """Run a module's command line in two processes; a hang is a failure."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, timeout=timeout, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def accelerate(config: str, *command: str) -> str:
    """`accelerate launch` with one of our files; a free port is chosen by accelerate."""
    port = ["--main_process_port", "0"]
    return launch(
        "accelerate.commands.launch", "--config_file", str(CONFIGS / config), "--num_processes", "2", *port, *command
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A folder with a small model; a config file without output folder; and what one process makes of them."""
    root = tmp_path_factory.mktemp("launch")
    rows = load_rows(DataArguments(**DATA))
    tokenizer = new_tokenizer(rows, 400)
    torch.manual_seed(0)
    new_model(SCRATCH, tokenizer).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    options = {"model": str(root / "model"), **DATA, **OPTIONS}
    (root / "tiny.yaml").write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in options.items()))
    sft([str(root / "tiny.yaml"), "--output_dir", str(root / "one"), "--per_device_train_batch_size", "8"])
    return root


def history(folder):
    entries = json.loads((folder / "history.json").read_text())
    return [(entry["loss"], entry["grad_norm"], entry["decision/rows"]) for entry in entries if "loss" in entry]


def assert_same_training(start, name):
    one, several = history(start / "one"), history(start / name)
    assert [entry[2] for entry in one] == pytest.approx([16, 16, 8, 16])  # the 40 rows end within the third step
    for entry, expected in zip(several, one, strict=True):
        assert entry == pytest.approx(expected, rel=1e-5)
    weights, expected = (load_file(start / folder / "model.safetensors") for folder in (name, "one"))
    assert weights.keys() == expected.keys()
    for key, weight in expected.items():
        torch.testing.assert_close(weights[key], weight, rtol=0, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


def arguments(start, name):
    return [
        "-m",
        "train.sft",
        str(start / "tiny.yaml"),
        "--output_dir",
        str(start / name),
        "--per_device_train_batch_size",
        "4",
    ]


def test_ddp(start):
    accelerate("ddp.yaml", *arguments(start, "ddp"))
    assert_same_training(start, "ddp")


def test_translations_in_the_same_order_after_a_resume(start):
    """In the second epoch of two processes, where accelerate's loader does not tell the sampler which epoch it is."""
    choice = {**DATA, "held_out": 0.0}
    data = [load_rows(DataArguments(**{**choice, "languages": [language]})) for language in ("de", "fr")]
    rows = [row for pair in zip(*data, strict=True) for row in pair][:40]
    assert len({row["instruction_en"] for row in rows}) == 20
    (start / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = {**OPTIONS, "model": str(start / "model"), "dataset": str(start / "pairs.jsonl"), "max_steps": 6}
    options |= {"translations_per_batch": 2, "save_strategy": "steps", "save_steps": 4}
    (start / "pairs.yaml").write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in options.items()))
    common = ["-m", "train.sft", str(start / "pairs.yaml"), "--per_device_train_batch_size", "4", "--output_dir"]
    accelerate("ddp.yaml", *common, str(start / "whole"))
    checkpoint = str(start / "whole" / "checkpoint-4")
    accelerate("ddp.yaml", *common, str(start / "resumed"), "--resume_from_checkpoint", checkpoint)
    whole, resumed = history(start / "whole"), history(start / "resumed")
    assert len(whole) == 6
    assert resumed == whole


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed(start, stage):
    """On a CPU DeepSpeed compiles an operator when it first runs, which takes a minute and wants g++."""
    pytest.importorskip("deepspeed")
    accelerate(f"deepspeed_zero{stage}.yaml", *arguments(start, f"zero{stage}"))
    assert_same_training(start, f"zero{stage}")


def test_fit_transform(start):
    """An odd number of pairs: one process has one more."""
    common = ["--model", str(start / "one"), "--max_pairs", "37", "--batch_size", "5", "--holdout", "0"]
    common += ["--ridge", "1e-8", "--device", "cpu"]
    fit([*common, "--output_dir", str(start / "fitted")])
    shown = launch(
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
        "-m",
        "train.fit_transform",
        *common,
        "--output_dir",
        str(start / "fitted_by_two"),
    )
    assert shown.count("37 pairs fitted") == 1, "only one process prints"
    folders = [start / "fitted", start / "fitted_by_two"]
    one, two = (json.loads((folder / "transform_report.json").read_text()) for folder in folders)
    assert (two["pairs"], two["rank"], two["sample"]) == (one["pairs"], one["rank"], one["sample"])
    assert two["overall"] == pytest.approx(one["overall"], rel=1e-4)
    one, two = (load_file(folder / "model.safetensors")["cc.transform_matrix"] for folder in folders)
    torch.testing.assert_close(two, one, rtol=0, atol=1e-4 * one.abs().max().item())
