"""Engines whose scheduler and workers are processes of their own, and vLLM without the plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from served import generate, prompts_of

HERE = Path(__file__).parent
PROMPTS = prompts_of([1, 7, 33, 64, 100], seed=11)


def run(*folders, environment=None, **options):
    """The tokens that `run_engine.py` prints for each folder, and all that it says."""
    command = [
        sys.executable,
        str(HERE / "run_engine.py"),
        json.dumps(options),
        json.dumps(PROMPTS),
        *map(str, folders),
    ]
    done = subprocess.run(
        command, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("tokens ")]
    return [json.loads(line.removeprefix("tokens ")) for line in lines], done.stderr + done.stdout


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 2])
def test_an_engine_of_several_processes(model, folder, devices):
    """With two devices each has half of the heads and of the feed-forward block."""
    options = {"tensor_parallel_size": devices, "distributed_executor_backend": "mp"}
    tokens, output = run(folder, environment={"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}, **options)
    assert tokens == [[generate(model, prompt, 8) for prompt in PROMPTS]], output[-3000:]


@pytest.mark.long
def test_without_the_plugin_a_served_folder_is_refused(folder):
    tokens, output = run(folder, environment={"VLLM_PLUGINS": "none"})
    assert not tokens
    assert "Model architectures ['CCLlamaForCausalLM'] are not supported" in output


@pytest.mark.long
def test_without_the_plugin_weights_of_ours_are_refused(model, tmp_path):
    """Of a folder that was saved without `serve`; with the plugin, too, when no option names the architecture."""
    model.save_pretrained(tmp_path)
    tokens, output = run(tmp_path, environment={"VLLM_PLUGINS": "none"})
    assert not tokens
    assert "There is no module or parameter named 'cc'" in output
