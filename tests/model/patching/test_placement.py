"""`device_map`: models on several devices, and offloaded to the CPU and to disk by accelerate's hooks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model, infer_auto_device_map
from accelerate.hooks import remove_hook_from_submodules
from model_pairs import assert_same_gradients, at_end, batch, gradients, gumbel, pair
from torch.utils import backend_registration

from cc_model import fit_transform_matrix, from_pretrained, patch_model, report
from cc_model.testing import tiny_model

GREEDY = {"max_new_tokens": 4, "do_sample": False}
HOME = {"model.rotary_emb": "cpu", "model.layers.0": "cpu"}
REST = ("model.embed_tokens", "model.layers.1", "model.layers.2", "model.layers.3", "model.norm", "lm_head")


def with_map(model, folder, **places):
    """`dispatch_model` on a machine with a CPU only: what is not at home lies on disk, and comes for its forward."""
    device_map = {**HOME, **dict.fromkeys(REST, "disk"), **places}
    return dispatch_model(model, device_map, main_device="cpu", offload_dir=str(folder), force_hooks=True)


OFFLOADS = {
    "disk, decision on the CPU": lambda model, folder: with_map(model, folder, cc="cpu"),
    "disk, decision too": lambda model, folder: with_map(model, folder, cc="disk"),
    "all of it to the CPU": lambda model, folder: cpu_offload(model, execution_device=torch.device("cpu")),
    "all of it to disk": lambda model, folder: disk_offload(model, str(folder), execution_device=torch.device("cpu")),
}


def assert_connected(model, expected):
    """Pivot forward, simulated forward, `generate` and fit equal those of the model that lies in memory."""
    data, noise = batch(), gumbel(3)
    ids = data["input_ids"]
    with torch.no_grad():
        ours, theirs = model(**data, gumbel_noise=noise), expected(**data, gumbel_noise=noise)
        assert torch.equal(ours.logits, theirs.logits)
        assert torch.equal(ours.decision_weights, theirs.decision_weights)
        simulated = model(ids, **at_end(ids))
        assert torch.equal(simulated.logits, expected(ids, **at_end(ids)).logits)
        assert simulated.decision_weights.sum() == 3
    assert torch.equal(model.generate(ids, **GREEDY), expected.generate(ids, **GREEDY))
    pairs = [{"input_ids": ids, "pivot_input_ids": data["pivot_input_ids"]}]
    _, other = pair(matrix=True)
    fit_transform_matrix(other, pairs, progress=False)
    fit_transform_matrix(model, pairs, progress=False)
    assert torch.equal(model.cc.transform_matrix, other.cc.transform_matrix)
    assert {layer.path for layer in report(model).layers} == {"fused"}


@pytest.mark.parametrize("offload", OFFLOADS)
def test_offloaded_after_patching(offload, tmp_path):
    _, expected = pair(matrix=True)
    _, model = pair(matrix=True)
    OFFLOADS[offload](model, tmp_path)
    assert any(parameter.device.type == "meta" for parameter in model.parameters())
    assert_connected(model, expected)


@pytest.mark.parametrize("offload", ["disk", "all of it to the CPU", "all of it to disk"])
def test_patched_after_offloading(offload, tmp_path):
    _, expected = pair(matrix=True)
    model = tiny_model(initializer_range=0.15)
    OFFLOADS.get(offload, with_map)(model, tmp_path)
    patch_model(model)
    model.cc.load_state_dict(expected.cc.state_dict())
    assert model.cc.decision_maker.weight.device.type == "cpu"
    assert_connected(model, expected)


def test_from_pretrained_with_a_device_map(tmp_path):
    _, expected = pair(matrix=True)
    expected.save_pretrained(tmp_path / "model")
    device_map = {**HOME, **dict.fromkeys(REST, "disk"), "model.embed_tokens": "cpu"}
    model = from_pretrained(tmp_path / "model", device_map=device_map, offload_folder=str(tmp_path / "offload"))
    assert model.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    assert_connected(model, expected)


def test_inferred_map_keeps_layers_whole(tmp_path):
    """accelerate knows the blocks that stay together by the names of their classes, which patching leaves."""
    _, expected = pair(matrix=True)
    _, model = pair(matrix=True)
    size = sum(p.numel() * 4 for p in model.model.layers[0].parameters())
    device_map = infer_auto_device_map(
        model, max_memory={"cpu": 3 * size}, no_split_module_classes=model._no_split_modules
    )
    assert sum(name.startswith("model.layers.") for name in device_map) == 4
    assert set(device_map.values()) == {"cpu", "disk"}
    dispatch_model(model, device_map, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    assert_connected(model, expected)


def test_training_with_hooks():
    """Hooks without offloading, as on several GPUs: same loss and gradients."""
    _, expected = pair()
    _, model = pair()
    dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    data, noise = batch(), gumbel(3)
    for each in (expected.train(), model.train()):
        each(**data, gumbel_noise=noise).loss.backward()
    assert_same_gradients(gradients(model), gradients(expected), tolerance=0)
    remove_hook_from_submodules(model)
    assert torch.equal(model(**data, gumbel_noise=noise).loss, expected(**data, gumbel_noise=noise).loss)


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="needs a later PyTorch"
)
def test_two_devices():
    """Devices that exist only for `FakeTensorMode`: no operation meets tensors of both."""
    program = Path(__file__).parents[1] / "helpers" / "two_devices.py"
    done = subprocess.run(
        [sys.executable, str(program)],
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "placed", done.stderr[-3000:]
