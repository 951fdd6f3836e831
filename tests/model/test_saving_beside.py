"""Saving into a folder that holds something already: what the save does not replace is still there, and still loads."""

from __future__ import annotations

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from types import SimpleNamespace

import pytest
import torch
import transformers
from model_pairs import pair
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cc_model import CCConfig, from_pretrained
from cc_model.saving import weights_file, weights_index

SHARDS = {"max_shard_size": "200KB"}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_model(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("sharded", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("order", ["variant last", "variant first"])
@pytest.mark.parametrize("variant", ["bf16", "v1.0", "non-ema"])
def test_a_variant_beside_the_weights(variant, order, sharded, tmp_path):
    _, model = pair(matrix=True)
    _, other = pair(seed=3, matrix=True)
    saves = [(model, {}), (other, {"variant": variant})]
    for (saved, name), shards in zip(saves if order == "variant last" else saves[::-1], sharded):
        saved.save_pretrained(tmp_path, **name, **(SHARDS if shards else {}))
    assert same_model(from_pretrained(tmp_path), model)
    assert same_model(from_pretrained(tmp_path, variant=variant), other)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, variant=variant)
    assert torch.equal(plain.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize("variant", [None, "bf16"])
@pytest.mark.parametrize("before", [True, False])
def test_shards_and_one_file_of_the_same_weights_replace_each_other(before, variant, tmp_path):
    _, model = pair()
    _, new = pair(seed=1)
    model.save_pretrained(tmp_path, variant=variant, **(SHARDS if before else {}))
    new.save_pretrained(tmp_path, variant=variant, **({} if before else SHARDS))
    names = {path.name for path in tmp_path.glob("model*")}
    assert (weights_file(variant) in names) == before
    assert (weights_index(variant) in names) != before
    assert (len(names) == 1) == before
    assert same_model(from_pretrained(tmp_path, variant=variant), new)


def test_a_dtype_of_its_own(tmp_path):
    """The example of the report: fp32, then bf16 as a variant."""
    _, model = pair(matrix=True)
    model.save_pretrained(tmp_path)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    model.to(torch.bfloat16).save_pretrained(tmp_path, variant="bf16")
    again = from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    assert all(torch.equal(again[name], value) for name, value in expected.items())
    assert from_pretrained(tmp_path, variant="bf16").dtype == torch.bfloat16


def test_a_missing_variant_raises(tmp_path):
    _, model = pair()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"directory: expected model\.fp16\.safetensors in"):
        from_pretrained(tmp_path, variant="fp16")


def test_files_of_others_stay(tmp_path):
    others = {
        "pytorch_model.bin": "weights",
        "tokenizer.json": "words",
        "adapter_model.safetensors": "adapter",
        "model-card.safetensors": "card",
        "model.onnx": "graph",
        "consolidated.00.safetensors": "original",
        "original/model.safetensors": "kept",
        "model-00001-of-00002.bin": "shard",
    }
    for name, text in others.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    _, model = pair()
    for options in ({}, SHARDS, {"plain": True}, {"variant": "bf16"}):
        model.save_pretrained(tmp_path, **options)
        assert {name: (tmp_path / name).read_text() for name in others} == others
    assert not list(tmp_path.glob(".*"))


def test_plain_beside_a_connected_variant(tmp_path):
    """The options describe the variant, so they stay while it does."""
    _, model = pair(matrix=True)
    model.save_pretrained(tmp_path, variant="bf16")
    model.save_pretrained(tmp_path, plain=True)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if name.startswith("cc.")]
    assert same_model(from_pretrained(tmp_path, variant="bf16"), model)
    with pytest.raises(ValueError, match=r"expected the weights cc\.decision_maker\.weight .* got a plain model's"):
        from_pretrained(tmp_path)
    model.save_pretrained(tmp_path, variant="bf16", plain=True)
    assert not (tmp_path / "cc_config.json").exists()


def test_a_plain_variant_leaves_the_connected_weights(tmp_path):
    _, model = pair(matrix=True)
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, variant="server", plain=True)
    assert same_model(from_pretrained(tmp_path), model)


def test_a_variant_with_other_options_raises(tmp_path):
    _, model = pair()
    model.save_pretrained(tmp_path)
    before = contents(tmp_path)
    _, other = pair("llama", CCConfig(inject_layer=2))
    with pytest.raises(ValueError, match=r"save_directory: expected a model with CCConfig\(inject_layer=0"):
        other.save_pretrained(tmp_path, variant="bf16")
    assert contents(tmp_path) == before
    other.save_pretrained(tmp_path)  # nothing else in the folder has the old options
    assert from_pretrained(tmp_path).cc.config == CCConfig(inject_layer=2)


def test_a_folder_in_the_way_of_a_file(tmp_path):
    _, model = pair()
    (tmp_path / "model.safetensors").mkdir()
    (tmp_path / "model.safetensors" / "mine").write_text("kept")
    before = contents(tmp_path)
    with pytest.raises(IsADirectoryError, match=r"save_directory: expected no folder named 'model\.safetensors'"):
        model.save_pretrained(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("failing", range(6))
def test_a_save_that_fails_while_it_moves(failing, links, tmp_path, monkeypatch):
    """At each file in turn, and as `cc_config.json` is written: what was moved goes back."""
    _, model = pair()
    model.save_pretrained(tmp_path, **SHARDS)
    (tmp_path / "generation_config.json").unlink()  # so that one of the files is new
    before = contents(tmp_path)
    moves, replace = [], os.replace

    def broken(source, destination):
        if os.sep + "new" + os.sep in str(source):
            moves.append(destination)
            if len(moves) == failing:
                raise OSError("disk full")
        replace(source, destination)

    def no_links(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "replace", broken)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    if failing == 0:  # the last step: a stale shard that cannot be removed
        unlink = type(tmp_path).unlink

        def refused(self, **options):
            if self.parent == tmp_path and self.name.startswith("model-00002"):
                raise PermissionError("not yours")
            unlink(self, **options)

        monkeypatch.setattr(type(tmp_path), "unlink", refused)
    _, new = pair(seed=1)
    with pytest.raises(OSError, match=r"disk full|not yours"):
        new.save_pretrained(tmp_path)
    assert contents(tmp_path) == before


def test_distributed_checkpoints_are_refused(tmp_path):
    _, model = pair()
    with pytest.raises(ValueError, match="distributed_checkpoint: expected False"):
        model.save_pretrained(tmp_path, distributed_checkpoint=True)


class Hub:
    """The part of the hub that a save with `push_to_hub=True` talks to."""

    def __init__(self, monkeypatch, model, fails=False):
        self.uploaded: list = []
        hub = SimpleNamespace(create_repo=lambda name, **_: SimpleNamespace(repo_id=name))
        for name, value in (("hf_api", lambda: hub), ("create_repo", hub.create_repo)):
            monkeypatch.setattr(transformers.modeling_utils, name, value, raising=False)
        card = SimpleNamespace(save=lambda path: open(path, "w").close())
        monkeypatch.setattr(transformers.modeling_utils, "create_and_tag_model_card", lambda *_, **__: card)

        def upload(_, folder, repo_id, files_timestamps, **__):
            if fails:
                raise ConnectionError("no hub")
            names = [n for n in os.listdir(folder) if os.path.getmtime(f"{folder}/{n}") > files_timestamps.get(n, 0)]
            self.uploaded.append((repo_id, sorted(names)))

        monkeypatch.setattr(type(model), "_upload_modified_files", upload)


def test_an_upload_replaces_only_its_own(tmp_path, monkeypatch):
    _, model = pair(matrix=True)
    folder = tmp_path / "mine"
    model.save_pretrained(folder, variant="bf16", **SHARDS)
    (folder / "notes.txt").write_text("mine")
    variant = {name: data for name, data in contents(folder).items() if "bf16" in name}
    hub = Hub(monkeypatch, model)
    model.save_pretrained(folder, push_to_hub=True)
    expected = ["README.md", "cc_config.json", "config.json", "generation_config.json", "model.safetensors"]
    assert hub.uploaded == [("mine", expected)]
    assert variant.items() <= contents(folder).items()
    assert same_model(from_pretrained(folder), model)
    assert same_model(from_pretrained(folder, variant="bf16"), model)


def test_an_upload_that_is_refused_leaves_a_saved_model(tmp_path, monkeypatch):
    """As the stock method does: the files are written before they are sent."""
    _, model = pair(matrix=True)
    Hub(monkeypatch, model, fails=True)
    with pytest.raises(ConnectionError, match="no hub"):
        model.save_pretrained(tmp_path / "mine", push_to_hub=True)
    assert same_model(from_pretrained(tmp_path / "mine"), model)
    assert not list((tmp_path / "mine").glob(".*"))


def test_one_file_wins_over_an_index(tmp_path):
    """As in transformers, which reads the one file where a folder has both."""
    _, model = pair()
    _, other = pair(seed=1, matrix=True)
    other.save_pretrained(tmp_path / "other", **SHARDS)
    model.save_pretrained(tmp_path / "model")
    for path in (tmp_path / "other").glob("model*"):
        shutil.copy(path, tmp_path / "model" / path.name)
    assert same_model(from_pretrained(tmp_path / "model"), model)


def test_saves_at_the_same_time_wait_for_each_other(tmp_path, monkeypatch):
    """As where every process of a training saves its copy: none takes the files of another for abandoned ones."""
    (_, slow), (_, quick) = pair(seed=1), pair(seed=2)
    stock = transformers.PreTrainedModel.save_pretrained
    inside, go_on, order = threading.Event(), threading.Event(), []

    def waiting(model, *args, **kwargs):
        order.append(model)
        if model is slow:
            inside.set()
            assert go_on.wait(10)
        return stock(model, *args, **kwargs)

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", waiting)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(slow.save_pretrained, tmp_path)
        assert inside.wait(60)
        second = pool.submit(quick.save_pretrained, tmp_path)
        assert wait([second], timeout=0.5).not_done
        assert order == [slow]
        go_on.set()
        first.result(60)
        second.result(60)
    assert same_model(from_pretrained(tmp_path), quick)
    assert not list(tmp_path.glob(".saving-*"))
