"""train.sft end to end on a handful of rows: both methods, resume, YAML and command line, and bad arguments."""

import json
import re

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin

from cc_model import from_pretrained
from cc_model.data.collator import ParallelCollator
from cc_model.integrations.trainer import ROWS, CCTrainer, histogram
from train.common.arguments import CollatorArguments, DataArguments, ModelArguments, SftArguments, parse
from train.common.models import load_trained
from train.data import build_rows
from train.sft import main, run_sft

SCRATCH = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
SHORT = {"scratch": SCRATCH, "scratch_vocab_size": 400, "max_length": 64, "max_steps": 4, "logging_steps": 1}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A JSONL file of 40 rows, 8 of them English."""
    data = build_rows(languages=["en", "de"], relations=["currency"])["train"]
    english = [row for row in data if row["language"] == "en"][:8]
    german = [row for row in data if row["language"] == "de"][:32]
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in german + english), encoding="utf-8")
    return path


@pytest.fixture
def config(tmp_path, rows):
    """Writes a YAML file of the short training with changes, and returns its path."""

    def write(name="config.yaml", **changes):
        options = {**SHORT, "dataset": str(rows), "output_dir": str(tmp_path / "out"), "use_cpu": True, **changes}
        path = tmp_path / name
        path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in options.items()))
        return str(path)

    return write


def history(folder):
    entries = json.loads((folder / "history.json").read_text())
    return [entry for entry in entries if "loss" in entry]


def losses(folder):
    return [entry["loss"] for entry in history(folder)]


def test_cc_trains_saves_and_logs_decisions(config, tmp_path):
    main([config(), "--per_device_train_batch_size", "5", "--gradient_accumulation_steps", "2", "--max_steps", "4"])
    entries = history(tmp_path / "out")
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
    assert all(len(histogram(entry)) == 2 and sum(histogram(entry)) == pytest.approx(1) for entry in entries)
    assert sum(entry[ROWS] for entry in entries) == 32  # one epoch: every German row once, no English one
    model = from_pretrained(tmp_path / "out")
    assert model.cc.decision_maker.weight.shape == (2, 32)
    again, collator = load_trained(str(tmp_path / "out"))
    assert collator.max_length == 64
    assert torch.equal(again.cc.decision_maker.weight, model.cc.decision_maker.weight)
    # Generation stops where the template ends an answer.
    assert collator.tokenizer.eos_token_id in again.generation_config.eos_token_id


def test_the_model_of_a_sharded_training_is_saved_whole(config, tmp_path, monkeypatch):
    """accelerate's default for FSDP2 are sharded checkpoints; Trainer then writes no model at the end either."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")

    class Sharded(CCTrainer):
        def train(self, *args, **kwargs):
            result = super().train(*args, **kwargs)
            self.is_fsdp_enabled = True
            monkeypatch.setattr(self.accelerator.state, "fsdp_plugin", plugin, raising=False)
            return result

    groups = (ModelArguments, DataArguments, CollatorArguments, SftArguments)
    run_sft(*parse(groups, "train.sft", "", [config(max_steps=1, save_strategy="no")]), kind=Sharded)
    assert from_pretrained(tmp_path / "out").cc.num_layers == 2


def test_vanilla_trains_a_stock_model_from_the_same_weights(config, tmp_path):
    for method in ("cc", "vanilla"):
        main([config(), "--method", method, "--output_dir", str(tmp_path / method), "--learning_rate", "0.01"])
    assert not (tmp_path / "vanilla" / "cc_config.json").exists()
    model, _ = load_trained(str(tmp_path / "vanilla"))
    assert not hasattr(model, "cc")
    assert all(not histogram(entry) for entry in history(tmp_path / "vanilla"))
    plain, connected = losses(tmp_path / "vanilla"), losses(tmp_path / "cc")
    assert plain[0] == pytest.approx(connected[0], rel=1e-2)  # same weights and rows, before the connection learned
    assert plain != connected
    assert plain[-1] < plain[0] - 0.05  # it does learn
    assert connected[-1] < connected[0] - 0.05


def test_resume_reproduces_the_uninterrupted_losses(config, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = ["--learning_rate", "0.01", "--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "5"]
    main([config(), *common, "--output_dir", str(whole), "--max_steps", "6"])
    main([config(), *common, "--output_dir", str(parts), "--max_steps", "6"])
    for name in ("checkpoint-4", "checkpoint-6"):  # as if it had stopped after step 2
        for file in (parts / name).iterdir():
            file.unlink()
        (parts / name).rmdir()
    main([config(), *common, "--output_dir", str(parts), "--max_steps", "6", "--resume_from_checkpoint", "true"])
    assert losses(parts) == losses(whole)
    one, other = (from_pretrained(folder).state_dict() for folder in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
    decisions = [[histogram(entry) for entry in history(folder)] for folder in (whole, parts)]
    assert decisions[0] == decisions[1]  # the noise is resumed as well


def test_packed_rows_train_like_padded_ones(config, tmp_path):
    """For both methods; the noise is drawn per example either way."""
    for method in ("cc", "vanilla"):
        for packed in (False, True):
            options = [
                "--method",
                method,
                "--output_dir",
                str(tmp_path / f"{method}{packed}"),
                "--learning_rate",
                "0.01",
            ]
            main([config(), *options, "--packed", str(packed), "--per_device_train_batch_size", "5"])
        padded, packed_losses = losses(tmp_path / f"{method}False"), losses(tmp_path / f"{method}True")
        assert packed_losses == pytest.approx(padded, rel=1e-3)
        assert padded[-1] < padded[0] - 0.05


def test_command_line_overrides_yaml(config, tmp_path):
    path = config(learning_rate=0.5, lr_scheduler_type="constant", warmup_steps=0)
    main([path, "--learning_rate", "1e-3", "--max_steps", "1"])
    entries = history(tmp_path / "out")
    assert len(entries) == 1
    assert entries[0]["learning_rate"] == 1e-3
    main([path, "--max_steps", "1", "--overwrite"])
    assert history(tmp_path / "out")[0]["learning_rate"] == 0.5


def test_bf16_buckets_evaluation_and_options_of_the_connection(config, tmp_path):
    path = config(bf16=True, bucket_by_length=True, pivot_grad=True, hard=False, eval_split="train")
    main([path, "--max_steps", "2", "--eval_strategy", "steps", "--eval_steps", "2", "--inject_layer", "1"])
    entries = json.loads((tmp_path / "out" / "history.json").read_text())
    assert sum("eval_loss" in entry for entry in entries) == 1
    options = from_pretrained(tmp_path / "out").cc.config
    assert (options.pivot_grad, options.hard, options.inject_layer) == (True, False, 1)


def test_starts_from_a_saved_model_with_chat_data(config, tmp_path):
    main([config(), "--max_steps", "1"])
    chat = tmp_path / "chat.jsonl"
    row = {
        "messages": [{"role": "user", "content": "Japan"}, {"role": "assistant", "content": "Yen"}],
        "messages_en": [{"role": "user", "content": "Japan"}],
    }
    chat.write_text(8 * (json.dumps(row) + "\n"))
    options = {"model": str(tmp_path / "out"), "dataset": str(chat), "output_dir": str(tmp_path / "second")}
    second = config("second.yaml", **options, scratch=None)
    main([second, "--max_steps", "1", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1"])
    assert history(tmp_path / "second")[0][ROWS] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "nowhere.jsonl"}, "dataset: found no file 'nowhere.jsonl'"),
        ({"dataset": None}, "dataset: expected --dataset"),
        ({"split": "test", "dataset": "cldr"}, "split: expected one of train, held_out in cldr, got 'test'"),
        ({"output_column": "target"}, r"output_column: expected a column 'target' .*, got \["),
        ({"model": "somewhere"}, "model: expected either --model or --scratch, got both"),
        ({"scratch": None}, "model: expected either --model or --scratch, got neither"),
        ({"scratch": {"hidden_size": 32}}, "scratch: expected a field 'model_type'"),
        ({"chat_template": "llama4"}, "chat_template: expected llama3, qwen2, mistral or a Jinja file, got 'llama4'"),
        ({"chat_template": "mistral"}, r"chat_template: 'mistral' expects the token \[INST\]"),
        ({"position": "published"}, "position: 'published' expects a tokenizer with one of the markers"),
        ({"remove_unused_columns": True}, "remove_unused_columns: expected False"),
        ({"max_samples": 0}, "max_samples: expected a positive number, got 0"),
        ({"inject_layer": 2}, "inject_layer: expected a layer below 2, got 2"),
        ({"resume_from_checkpoint": "nowhere"}, "resume_from_checkpoint: expected 'true' or a checkpoint folder"),
    ],
)
def test_bad_arguments(config, changes, message):
    with pytest.raises(SystemExit, match=f"train.sft: {message}"):
        main([config(**changes)])


def test_no_pivot_column(config, tmp_path):
    path = tmp_path / "plain.jsonl"
    path.write_text(8 * (json.dumps({"instruction": "Japan", "output": "Yen"}) + "\n"))
    with pytest.raises(SystemExit, match="instruction_en: --method cc expects rows with an English version"):
        main([config(dataset=str(path))])
    main([config(dataset=str(path)), "--method", "vanilla", "--max_steps", "1"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rat: 1.0", "unknown option 'learning_rat'"),
        ("max_steps: many", "argument --max_steps.*invalid int value"),
        ("- a list", "expected `name: value` lines"),
        ("method: dpo", "argument --method: invalid choice: 'dpo'"),
    ],
)
def test_bad_yaml(tmp_path, capsys, line, message):
    path = tmp_path / "bad.yaml"
    path.write_text(line)
    with pytest.raises(SystemExit):
        main([str(path)])
    assert re.search(message, capsys.readouterr().err)


def test_does_not_train_over_checkpoints(config, tmp_path):
    (tmp_path / "out" / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(SystemExit, match="holds checkpoints already; continue with --resume_from_checkpoint true"):
        main([config()])


def test_help_names_what_a_newcomer_needs(capsys):
    for flag in ("--help", "--help_all"):
        with pytest.raises(SystemExit) as ended:
            main([flag])
        assert ended.value.code == 0
    short, whole = capsys.readouterr().out.split("usage:")[1:]
    for option in ("--model", "--dataset", "--method", "--learning_rate", "--resume_from_checkpoint", "--output_dir"):
        assert option in short
    assert "--adam_beta1" not in short
    assert "--adam_beta1" in whole


def test_recipe_is_the_default():
    options = SftArguments(use_cpu=True)
    assert (options.learning_rate, options.lr_scheduler_type, options.num_train_epochs) == (1e-5, "cosine", 3)
    assert options.get_warmup_steps(1000) == 100
    assert ParallelCollator.__init__.__defaults__[1] == CollatorArguments().max_length == 1024
