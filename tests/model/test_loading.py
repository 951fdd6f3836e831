"""`from_pretrained`: the configs that it takes, what it refuses, and other loaders that meet a saved connection."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from generation_helpers import GREEDY, prompts
from model_pairs import pair
from transformers import AutoConfig, AutoModelForCausalLM, ViTConfig

from cc_model import CCConfig, from_pretrained, patch_model
from cc_model.testing import tiny_model


@pytest.fixture
def saved(tmp_path):
    """A folder with a model, and the model."""
    _, model = pair("llama", CCConfig(inject_layer=1), matrix=True)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model", model


@pytest.mark.parametrize("form", ["str", "path", "file", "object"])
def test_a_config_of_its_own(form, saved, tmp_path):
    """As the stock method takes it: a folder's name, a file, or a config; its fields are the loaded model's."""
    folder, model = saved
    config = AutoConfig.from_pretrained(folder)
    config.rope_parameters = {**config.rope_parameters, "rope_theta": 123.0}
    config.save_pretrained(tmp_path / "config")
    where = tmp_path / "config"
    given = {"str": str(where), "path": where, "file": str(where / "config.json"), "object": config}[form]
    loaded = from_pretrained(folder, config=given)
    stock = type(tiny_model()).from_pretrained(folder, config=given)
    assert loaded.config.rope_parameters["rope_theta"] == 123.0
    assert loaded.config.to_diff_dict() == {**stock.config.to_diff_dict(), **_ours(loaded)}
    assert torch.equal(loaded.cc.transform_matrix, model.cc.transform_matrix)
    assert loaded.cc.config == model.cc.config


def _ours(model):
    return {"keys_to_ignore_at_inference": model.config.keys_to_ignore_at_inference}


@pytest.mark.parametrize("given", ["an object", "a path", "the folder's own"])
def test_a_config_without_a_causal_language_model(given, saved, tmp_path):
    folder, _ = saved
    options = {}
    if given == "an object":
        options = {"config": ViTConfig()}
    elif given == "a path":
        ViTConfig().save_pretrained(tmp_path / "vit")
        options = {"config": str(tmp_path / "vit")}
    else:
        (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match="config: expected the config of a causal language model, got ViTConfig"):
        from_pretrained(folder, **options)


def test_a_plain_folder_names_what_patches_it(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a new connection, not trained and without a matrix, by patch_model"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("shards", ["50GB", "200KB"])
@pytest.mark.parametrize("device_map", [None, "auto", {"": "cpu"}])
def test_accelerate_loads_the_matrix_or_says_that_it_does_not(device_map, shards, empty, saved, tmp_path, caplog):
    """Without a device map it loads the matrix; with one, where a matrix is there already, as the document says."""
    _, expected = saved
    folder = tmp_path / "again"
    expected.save_pretrained(folder, max_shard_size=shards)
    ids, _ = prompts((9,))
    for placed in (False, True):
        if empty:
            with init_empty_weights():
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        else:
            model = tiny_model()
        patch_model(model, CCConfig(inject_layer=1))
        if placed:
            model.cc.transform_matrix = torch.zeros(64, 64)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            model = load_checkpoint_and_dispatch(model, str(folder), device_map=device_map).eval()
            if placed or device_map is None:
                assert torch.equal(model.cc.transform_matrix, expected.cc.transform_matrix)
                assert torch.equal(model.cc.decision_maker.weight, expected.cc.decision_maker.weight)
                assert torch.equal(model.generate(ids, **GREEDY), expected.generate(ids, **GREEDY))
            else:
                assert "were not used" in caplog.text
                assert "cc.transform_matrix" in caplog.text
                model.generate(ids, **GREEDY)
                assert "generate: no Transform Matrix is set" in caplog.text
