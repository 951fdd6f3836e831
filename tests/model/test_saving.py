"""Saving and loading: bit-equal, loadable as the plain model, whole or not at all."""

from __future__ import annotations

import json
import logging
import os
from types import SimpleNamespace

import pytest
import torch
import transformers
from model_pairs import at_end, batch, gumbel, pair
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cc_model import CCConfig, from_pretrained, patch_model
from cc_model.testing import random_matrix, tiny_model


def full_model(architecture="llama", **options):
    """Every part set: options, one matrix per layer, bias."""
    _, model = pair(architecture, CCConfig(inject_layer=1, temperature=0.5, **options))
    model.cc.transform_matrix = torch.stack([random_matrix(model, seed=s) for s in range(4)])
    model.cc.transform_bias = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("shard", ["50GB", "200KB"])
def test_round_trip_is_bit_equal(architecture, tmp_path, shard):
    model = full_model(architecture)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("model-*.safetensors"))) > 1) == (shard == "200KB")
    again = from_pretrained(tmp_path)
    assert again.cc.config == model.cc.config
    state, expected = again.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    data = batch()
    assert torch.equal(again(**data, gumbel_noise=gumbel(3)).logits, model(**data, gumbel_noise=gumbel(3)).logits)
    prompt = data["input_ids"][:1]
    generated = (m.generate(prompt, max_new_tokens=4, do_sample=False) for m in (again, model))
    assert torch.equal(*generated)


def test_without_matrix(tmp_path):
    _, model = pair()
    model.save_pretrained(tmp_path)
    assert from_pretrained(tmp_path).cc.transform_matrix is None


@pytest.mark.parametrize("plain", [False, True])
def test_stock_transformers_loads_the_plain_model(architecture, tmp_path, plain):
    stock, model = pair(architecture, matrix=True)
    model.save_pretrained(tmp_path, plain=plain)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(stock)
    ids = batch()["input_ids"]
    assert torch.equal(loaded(ids).logits, stock(ids).logits)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [type(stock).__name__]
    assert "keys_to_ignore_at_inference" not in config
    assert "decision_weights" in model.config.keys_to_ignore_at_inference, "saving leaves the model as it is"


def test_plain_leaves_out_everything_of_ours(tmp_path):
    model = full_model()
    model.save_pretrained(tmp_path)  # what an earlier save left must go, too
    model.save_pretrained(tmp_path, plain=True)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if name.startswith("cc.")]
    assert not (tmp_path / "cc_config.json").exists()
    with pytest.raises(ValueError, match=r"directory: expected cc_config.json in .*patch_model\(AutoModel"):
        from_pretrained(tmp_path)


def test_safetensors_only(tmp_path):
    full_model().save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_fewer_shards_leave_no_stale_ones(tmp_path):
    model = full_model()
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("model-*"))
    assert torch.equal(from_pretrained(tmp_path).lm_head.weight, model.lm_head.weight)


def test_interrupted_save_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    model = full_model()
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("cc_model.config.CCConfig.to_json", broken)
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_given_state_dict_is_saved(tmp_path):
    """As Trainer does with gathered weights."""
    model = full_model()
    state = {name: value + 1 for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=dict(state))
    assert torch.equal(from_pretrained(tmp_path).cc.decision_maker.weight, state["cc.decision_maker.weight"])


def test_other_process_writes_nothing_of_ours(tmp_path):
    full_model().save_pretrained(tmp_path, is_main_process=False)
    assert not (tmp_path / "cc_config.json").exists()


@pytest.mark.parametrize("plain", [False, True])
def test_an_upload_has_the_options(plain, tmp_path, monkeypatch):
    """`save_pretrained(push_to_hub=True)` uploads before it returns; no hub is reached here."""
    _, model = pair(matrix=True)
    hub = SimpleNamespace(create_repo=lambda *_, **__: SimpleNamespace(repo_id="someone/mine"))
    for name, value in (("hf_api", lambda: hub), ("create_repo", hub.create_repo)):
        monkeypatch.setattr(transformers.modeling_utils, name, value, raising=False)
    card = SimpleNamespace(save=lambda path: None)
    monkeypatch.setattr(transformers.modeling_utils, "create_and_tag_model_card", lambda *_, **__: card)
    uploaded = []
    monkeypatch.setattr(
        type(model),
        "_upload_modified_files",
        lambda self, folder, *_, **__: uploaded.append(sorted(os.listdir(folder))),
    )
    model.save_pretrained(tmp_path / "mine", push_to_hub=True, plain=plain)
    assert "model.safetensors" in uploaded[0]
    assert ("cc_config.json" in uploaded[0]) == (not plain)
    assert len(uploaded) == 1
    assert "_upload_modified_files" not in model.__dict__


def test_hf_arguments_are_passed_on(tmp_path):
    full_model().save_pretrained(tmp_path)
    model = from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.cc.decision_maker.weight.dtype == torch.bfloat16
    assert model.cc.transform_matrix.dtype == torch.bfloat16


def test_loading_is_silent_about_our_entries(tmp_path, caplog):
    full_model().save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        from_pretrained(tmp_path)
    assert "cc." not in caplog.text


def test_errors(tmp_path):
    model = full_model()
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="save_directory: expected a directory, got the file"):
        model.save_pretrained(file)
    model.save_pretrained(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    del weights["cc.decision_maker.weight"]
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"expected the weights cc\.decision_maker\.weight"):
        from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("form", ["shared", "per layer", "was set"])
def test_state_dict_with_a_matrix_is_accepted(form):
    _, source = pair()
    shared = random_matrix(source)
    source.cc.transform_matrix = torch.stack([shared] * 4) if form == "per layer" else shared
    target = patch_model(tiny_model())
    if form == "was set":
        target.cc.transform_matrix = random_matrix(target, seed=9)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.cc.transform_matrix, source.cc.transform_matrix)
    with torch.no_grad():
        ids = batch()["input_ids"]
        assert torch.equal(target(ids, **at_end(ids)).logits, source(ids, **at_end(ids)).logits)


def test_bad_matrix_in_a_state_dict():
    _, model = pair(matrix=True)
    state = model.state_dict()
    for value, message in [
        (torch.zeros(3, 3), "expected shape"),
        (torch.full((64, 64), float("inf")), "that are finite"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            patch_model(tiny_model()).load_state_dict({**state, "cc.transform_matrix": value})


def test_config_round_trip(tmp_path):
    config = CCConfig(inject_layer=3, temperature=0.25, hard=False, pivot_grad=True)
    config.to_json(tmp_path / "c.json")
    assert CCConfig.from_json(tmp_path / "c.json") == config
    assert CCConfig.from_dict(config.to_dict()) == config
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"inject_layer": -1}, ValueError, "inject_layer: expected 0 or more, got -1"),
        ({"inject_layer": 1.0}, TypeError, "inject_layer: expected an int, got 1.0"),
        ({"inject_layer": True}, TypeError, "inject_layer: expected an int, got True"),
        ({"temperature": 0.0}, ValueError, "temperature: expected a finite number above 0"),
        ({"temperature": float("nan")}, ValueError, "temperature: expected a finite number above 0"),
        ({"temperature": "1"}, TypeError, "temperature: expected a number, got '1'"),
        ({"hard": 1}, TypeError, "hard: expected True or False, got 1"),
        ({"pivot_grad": None}, TypeError, "pivot_grad: expected True or False"),
        ({"layers": 1}, ValueError, "config: unknown key 'layers'"),
    ],
)
def test_config_errors(options, error, message):
    with pytest.raises(error, match=message):
        CCConfig.from_dict(options)


def test_config_file_errors(tmp_path):
    (tmp_path / "c.json").write_text("[1]")
    with pytest.raises(ValueError, match="expected a JSON object, got list"):
        CCConfig.from_json(tmp_path / "c.json")
    for broken in (b'{"hard": tr', b"", b"\xff{}"):
        (tmp_path / "c.json").write_bytes(broken)
        with pytest.raises(ValueError, match=r"c\.json: expected a JSON object, got no JSON: "):
            CCConfig.from_json(tmp_path / "c.json")


def test_serve_names_the_connected_architecture(tmp_path):
    model = patch_model(tiny_model())
    model.cc.transform_matrix = random_matrix(model)
    model.save_pretrained(tmp_path, serve=True)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["CCLlamaForCausalLM"]
    assert model.config.architectures == ["LlamaForCausalLM"], "the model's own config is left as it was"
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)).__name__ == "LlamaForCausalLM"
    loaded = from_pretrained(tmp_path)
    assert loaded.cc.transform_matrix.equal(model.cc.transform_matrix)
    loaded.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize("option", ["serve", "remote_code"])
@pytest.mark.parametrize(
    ("fitted", "plain", "message"), [(False, False, "a Transform Matrix"), (True, True, "got both")]
)
def test_a_folder_that_would_not_connect_is_refused(tmp_path, fitted, plain, message, option):
    model = patch_model(tiny_model())
    if fitted:
        model.cc.transform_matrix = random_matrix(model)
    with pytest.raises(ValueError, match=f"{option}: expected .*{message}"):
        model.save_pretrained(tmp_path, plain=plain, **{option: True})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["serve", "remote_code"])
def test_an_adapter_is_refused(tmp_path, option):
    """What transformers saves is then the adapter alone."""
    model = patch_model(tiny_model())
    model.cc.transform_matrix = random_matrix(model)
    model._hf_peft_config_loaded = True  # as transformers' add_adapter sets it
    with pytest.raises(ValueError, match=f"{option}: expected a model without adapters"):
        model.save_pretrained(tmp_path, **{option: True})
