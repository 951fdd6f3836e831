"""Adapters that transformers itself puts on a model: `add_adapter`, `load_adapter`, and a folder that holds one."""

from __future__ import annotations

import json
import logging

import pytest
import torch
import transformers.integrations.peft as of_transformers
from adapters import adapted, cc_of, fill, lora, peft
from killed_saves import loaded, save_killed_at
from model_pairs import batch, gumbel, pair
from transformers import AutoModelForCausalLM

from cc_model import CCConfig, from_pretrained, patch_model
from cc_model.integrations.peft import load_adapter
from cc_model.testing import random_matrix, tiny_model


@pytest.fixture(autouse=True)
def any_version_of_peft(monkeypatch):
    """transformers asks for a newer PEFT than it needs here."""
    monkeypatch.setattr(of_transformers, "check_peft_version", lambda **_: None)


def logits(model):
    with torch.no_grad():
        return model.eval()(**batch(), gumbel_noise=gumbel(3)).logits


def saved_adapter(folder, config=None, **options):
    """An adapter with all of the connection, as PEFT saves it."""
    _, wrapped = adapted(config=config, **options)
    cc_of(wrapped).transform_matrix = torch.stack([random_matrix(wrapped.get_base_model(), seed=s) for s in range(4)])
    cc_of(wrapped).transform_bias = torch.ones(64)
    wrapped.save_pretrained(folder)
    return wrapped


def with_adapter(model, **options):
    model.add_adapter(lora(**options))
    return fill(model)


@pytest.mark.parametrize("given", ["folder", "state dict"])
def test_load_adapter_brings_matrix_and_bias(given, tmp_path):
    wrapped = saved_adapter(tmp_path)
    model = patch_model(tiny_model(initializer_range=0.15))
    if given == "folder":
        model.load_adapter(tmp_path)
    else:
        weights = peft.utils.load_peft_weights(str(tmp_path), device="cpu")
        state = {name.removeprefix("base_model.model."): value for name, value in weights.items()}
        model.load_adapter(peft_config=peft.LoraConfig.from_pretrained(str(tmp_path)), adapter_state_dict=state)
    for name in ("transform_matrix", "transform_bias"):
        assert torch.equal(getattr(model.cc, name), getattr(cc_of(wrapped), name))
    assert torch.equal(logits(model), logits(wrapped))


def test_load_adapter_with_other_options_changes_nothing(tmp_path):
    saved_adapter(tmp_path, CCConfig(inject_layer=2))
    model = patch_model(tiny_model())
    before = [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match=r"options: the adapter was trained with CCConfig\(inject_layer=2"):
        model.load_adapter(tmp_path)
    assert [name for name, _ in model.named_parameters()] == before


def test_an_adapter_without_a_connection_leaves_the_models(tmp_path):
    peft.get_peft_model(tiny_model(), lora(modules_to_save=None)).save_pretrained(tmp_path)
    _, model = pair(matrix=True)
    matrix, weight = model.cc.transform_matrix.clone(), model.cc.decision_maker.weight.clone()
    model.load_adapter(tmp_path)
    assert torch.equal(model.cc.transform_matrix, matrix)
    assert torch.equal(model.cc.decision_maker.weight, weight)


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "200KB"}])
def test_an_adapter_saved_into_the_base_models_folder(shards, tmp_path):
    """The base's weights stay, and the folder loads: the base, its connection, and the adapter with its own."""
    _, base = pair("llama", CCConfig(inject_layer=1), matrix=True)
    base.save_pretrained(tmp_path, **shards)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*model*")}
    model = with_adapter(from_pretrained(tmp_path))
    model.cc.transform_matrix = random_matrix(model, seed=7)
    model.save_pretrained(tmp_path, **(shards and {"max_shard_size": "20KB"}))
    assert before.items() <= {path.name: path.read_bytes() for path in tmp_path.glob("*model*")}.items()
    again = from_pretrained(tmp_path)
    assert again.cc.config == CCConfig(inject_layer=1)
    assert torch.equal(again.cc.transform_matrix, model.cc.transform_matrix)
    assert torch.equal(logits(again), logits(model))
    assert not torch.equal(logits(again), logits(base))
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)).__name__ == "LlamaForCausalLM"


def test_an_adapter_alone_writes_no_options_of_ours(tmp_path):
    model = with_adapter(pair(matrix=True)[1])
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "cc_config.json").exists()
    again = load_adapter(tiny_model(initializer_range=0.15), tmp_path)
    assert torch.equal(cc_of(again).transform_matrix, model.cc.transform_matrix)
    again.get_base_model().cc.decision_maker.original_module.load_state_dict(
        model.cc.decision_maker.original_module.state_dict()
    )
    assert torch.equal(again.get_base_model().cc.decision_maker.weight, model.cc.decision_maker.weight)


def test_an_adapter_without_the_decision_maker_says_so(tmp_path, caplog):
    _, model = pair(matrix=True)
    model.add_adapter(lora(modules_to_save=None))
    with caplog.at_level(logging.WARNING, "cc_model"):
        model.save_pretrained(tmp_path / "plain", plain=True)
        assert "save_pretrained" not in caplog.text
        model.save_pretrained(tmp_path / "adapter")
    assert "transformers saves the adapter alone, and it has no Decision Maker" in caplog.text


def test_patched_after_add_adapter(tmp_path):
    """The Decision Maker joins the adapter, as in a `PeftModel`."""
    model = tiny_model(initializer_range=0.15)
    model.add_adapter(lora(modules_to_save=None))
    fill(patch_model(model))
    model.cc.transform_matrix = random_matrix(model)
    model.save_pretrained(tmp_path)
    again = load_adapter(tiny_model(initializer_range=0.15), tmp_path)
    assert torch.equal(cc_of(again).transform_matrix, model.cc.transform_matrix)
    assert torch.equal(cc_of(again).decision_maker.weight, model.cc.decision_maker.weight)


def test_patched_after_load_adapter_warns(tmp_path, caplog):
    """The stock model could not keep the adapter's Decision Maker."""
    saved_adapter(tmp_path)
    model = tiny_model(initializer_range=0.15)
    model.load_adapter(tmp_path)
    with caplog.at_level(logging.WARNING, "cc_model"):
        patch_model(model)
    assert "names the Decision Maker, but was put on a model without one" in caplog.text


def test_from_pretrained_of_an_adapter_names_what_loads_it(tmp_path):
    """The call in the message is run, and gives the adapter with all of its connection."""
    _, base = pair()
    base.save_pretrained(tmp_path / "base", plain=True)
    wrapped = saved_adapter(tmp_path / "adapter", CCConfig(inject_layer=1))
    file = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"directory: expected a model in .*, got an adapter") as raised:
        from_pretrained(tmp_path / "adapter")
    call = str(raised.value).rpartition(": cc_model.integrations.peft.")[2]
    assert call.startswith("load_adapter(AutoModelForCausalLM.from_pretrained(")
    again = eval(call, {"load_adapter": load_adapter, "AutoModelForCausalLM": AutoModelForCausalLM})
    assert torch.equal(cc_of(again).transform_matrix, cc_of(wrapped).transform_matrix)
    assert torch.equal(logits(again), logits(wrapped))


def test_a_killed_save_of_an_adapter(tmp_path):
    """Nothing loads, or one of the two adapters; `test_saving_killed.py` has the models."""
    models = {}
    for alpha in (8, 16):
        _, models[alpha] = pair(matrix=True)
        models[alpha].add_adapter(lora(lora_alpha=alpha))
        fill(models[alpha], seed=alpha)
    count, killed, seen = 0, True, []
    while killed:
        folder = tmp_path / str(count)
        models[8].save_pretrained(folder)
        killed = save_killed_at(count, models[16], folder, {})
        again = loaded(lambda f=folder: load_adapter(tiny_model(initializer_range=0.15), f))
        seen.append(None if again is None else again.peft_config["default"].lora_alpha)
        if again is not None:
            whole = models[seen[-1]]
            assert torch.equal(cc_of(again).decision_maker.weight, whole.cc.decision_maker.weight), count
        count += 1
    assert seen[0] == 8
    assert seen[-1] == 16
    assert None in seen
