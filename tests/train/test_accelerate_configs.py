"""accelerate itself reads the files in train/configs/accelerate, and asks for what they are named after."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from accelerate.utils.launch import prepare_multi_gpu_env
from model_pairs import pair

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "train" / "configs" / "accelerate").glob("*.yaml"))
KINDS = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
    "deepspeed_zero3": DistributedType.DEEPSPEED,
}


def launched(name):
    """The arguments that `accelerate launch --config_file <name>` resolves to."""
    path = str(ROOT / "train" / "configs" / "accelerate" / f"{name}.yaml")
    parsed = launch_command_parser().parse_args(["--config_file", path, "-m", "train.sft", "config.yaml"])
    return _validate_launch_command(parsed)[0]


def test_every_file_is_tested():
    assert {path.stem for path in CONFIGS} == KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_it(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = ROOT / "train" / "configs" / "accelerate" / f"{name}.yaml"
    assert load_config_from_file(str(path)).distributed_type == KINDS[name]
    arguments = launched(name)
    assert (arguments.num_processes, arguments.mixed_precision) == (8, "no")
    assert arguments.use_fsdp == (name == "fsdp2")
    assert arguments.use_deepspeed == name.startswith("deepspeed")
    assert arguments.multi_gpu == (name == "ddp")


def test_fsdp2_plugin(monkeypatch):
    """The environment that the launcher makes of the file, as the launched process reads it."""
    for name, value in prepare_multi_gpu_env(launched("fsdp2")).items():
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert (plugin.cpu_ram_efficient_loading, plugin.activation_checkpointing) == (False, False)
    _, model = pair()
    plugin.set_auto_wrap_policy(model)
    layer = next(iter(plugin.auto_wrap_policy.keywords["transformer_layer_cls"]))
    assert all(isinstance(module, layer) for module in model.model.layers), "patched layers are sharded one by one"


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_json(stage):
    path = ROOT / "train" / "configs" / "accelerate" / f"deepspeed_zero{stage}.json"
    config = HfDeepSpeedConfig(str(path))
    assert config.is_zero2() == (stage == 2)
    assert config.is_zero3() == (stage == 3)
    assert launched(f"deepspeed_zero{stage}").deepspeed_config_file == str(path.relative_to(ROOT))
    left_to_trainer = [name for name, value in json.loads(path.read_text()).items() if value == "auto"]
    assert len(left_to_trainer) == 4
