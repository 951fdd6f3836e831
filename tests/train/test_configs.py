"""Every YAML config parses, and the chat templates that they name connect where the published code did."""

from pathlib import Path

import pytest
import yaml

from train.common.arguments import CollatorArguments, DataArguments, ModelArguments, SftArguments, parse
from train.common.chat_templates import CHAT_TEMPLATES
from train.experiment.settings import read_settings

FILES = sorted((Path(__file__).parents[2] / "train" / "configs").glob("*.yaml"))
EXPERIMENTS = [path for path in FILES if path.stem.startswith("experiment")]
CONFIGS = [path for path in FILES if path not in EXPERIMENTS]
SEVEN_B = [path for path in CONFIGS if "-" in path.stem]  # the others have no size in the name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("error:`gradient_checkpointing:FutureWarning")
def test_config_parses(path):
    groups = (ModelArguments, DataArguments, CollatorArguments, SftArguments)
    model, data, _, training = parse(groups, "train.sft", "", [str(path), "--use_cpu", "true", "--bf16", "false"])
    assert (model.model is None) != (model.scratch is None)
    assert data.dataset is not None
    assert training.remove_unused_columns is False
    assert training.output_dir.startswith("runs/")
    assert training.gradient_checkpointing is (path in SEVEN_B)


@pytest.mark.parametrize("path", SEVEN_B, ids=lambda path: path.stem)
def test_seven_b_configs_follow_the_recipe(path):
    entries = yaml.safe_load(path.read_text())
    assert entries["chat_template"] in CHAT_TEMPLATES
    assert entries["method"] == "cc"
    assert entries["bf16"] is True
    assert (float(entries["learning_rate"]), entries["lr_scheduler_type"]) == (1e-5, "cosine")
    assert (entries["warmup_steps"], entries["num_train_epochs"], entries["max_length"]) == (0.1, 3, 1024)
    assert entries["position"] == "published"


def test_the_three_models_have_a_config():
    assert {yaml.safe_load(path.read_text())["model"] for path in SEVEN_B} == {
        "meta-llama/Llama-3.1-8B",
        "Qwen/Qwen2.5-7B",
        "mistralai/Mistral-7B-v0.3",
    }


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_are_complete(path):
    settings = read_settings(path)
    assert {"vanilla", "cc"} <= set(settings.conditions)
    assert len(settings.seeds) >= 3
