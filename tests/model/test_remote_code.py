"""A folder with a file of code, which stock transformers loads with the connection when it is told to trust it."""

from __future__ import annotations

import ast
import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, dynamic_module_utils, pipeline
from word_tokenizers import make_tokenizer

from cc_model import from_pretrained, patch_model
from cc_model.saving import CODE
from cc_model.testing import random_matrix, tiny_model

PROMPTS = ["eins zwei drei", "one two"]
GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(autouse=True)
def modules(tmp_path_factory, monkeypatch):
    """Where transformers copies such files to."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))


def fitted(family="llama", **options):
    model = patch_model(tiny_model(family, **options))
    model.cc.transform_matrix = random_matrix(model, scale=30.0)
    return model


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "trusted-1.0"
    fitted(eos_token_id=None).save_pretrained(path, remote_code=True)
    make_tokenizer("plain").save_pretrained(path)
    return path


def generate(model, text="eins zwei drei"):
    ids = torch.tensor([make_tokenizer("plain")(text)["input_ids"]])
    return model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY)[0, ids.shape[1] :].tolist()


def test_auto_model_connects_if_it_trusts_the_folder(folder):
    expected = generate(from_pretrained(folder))
    trusting = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float64)
    assert generate(trusting) == expected
    assert trusting.dtype == torch.float64
    assert type(trusting).__name__ == "LlamaForCausalLM"
    assert not trusting.training
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert not hasattr(plain, "cc")
    assert generate(plain) != expected
    assert generate(from_pretrained(folder, trust_remote_code=True)) == expected


def test_a_config_alone_has_no_connection(folder):
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    with pytest.raises(ValueError, match="trust_remote_code: expected False with from_config"):
        AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    assert not hasattr(AutoModelForCausalLM.from_config(config), "cc")


@pytest.mark.parametrize("batch", [1, 2])
def test_a_pipeline_connects(folder, batch):
    model = from_pretrained(folder)
    generator = pipeline("text-generation", model=str(folder), trust_remote_code=True)
    generator.tokenizer.padding_side = "left"
    answers = generator(PROMPTS, return_tensors=True, batch_size=batch, **GREEDY)
    new = [answer[0]["generated_token_ids"][-GREEDY["max_new_tokens"] :] for answer in answers]
    assert new == [generate(model, text) for text in PROMPTS]
    stock = pipeline("text-generation", model=str(folder))
    assert not hasattr(stock.model, "cc")


def names(folder):
    return json.loads((folder / "config.json").read_text())


def test_a_later_save_is_without_it(folder, tmp_path):
    assert names(folder)["auto_map"] == {"AutoModelForCausalLM": "modeling_cc.ConnectedCausalLM"}
    assert (folder / "modeling_cc.py").read_text() == CODE.read_text()
    trusting = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    trusting.save_pretrained(tmp_path / "other")
    assert "auto_map" not in names(tmp_path / "other")
    assert not (tmp_path / "other" / "modeling_cc.py").exists()
    trusting.save_pretrained(folder, plain=True)
    assert "auto_map" not in names(folder)
    assert not (folder / "modeling_cc.py").exists()


def test_other_code_of_the_config_stays(folder, tmp_path):
    model = fitted()
    model.config.auto_map = {"AutoModel": "theirs.Model"}
    model.save_pretrained(tmp_path, remote_code=True, serve=True)
    assert names(tmp_path)["auto_map"] == {"AutoModel": "theirs.Model", **names(folder)["auto_map"]}
    assert names(tmp_path)["architectures"] == ["CCLlamaForCausalLM"]
    from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert names(tmp_path)["auto_map"] == {"AutoModel": "theirs.Model"}


def test_the_file_needs_the_package_alone():
    """Transformers imports it from a copy, where nothing else of ours lies beside it."""
    imported = {
        alias.name
        for node in ast.walk(ast.parse(CODE.read_text()))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    relative = [
        node for node in ast.walk(ast.parse(CODE.read_text())) if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert imported == {"os", "cc_model"}
    assert not relative
