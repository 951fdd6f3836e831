"""PEFT: adapters around a patched model train the Decision Maker, and their checkpoints hold all of the connection."""

from __future__ import annotations

import pytest
import torch
from adapters import PROJECTIONS, adapted, cc_of, fill, lora, peft
from model_pairs import assert_same_gradients, batch, gumbel, pair
from oracle import training_forward
from safetensors.torch import load_file, save_file

from cc_model import CCConfig, fit_transform_matrix, from_pretrained, patch_model
from cc_model.integrations.peft import load_adapter
from cc_model.testing import random_matrix, tiny_model

GREEDY = {"max_new_tokens": 4, "do_sample": False}
ADAPTER_FILE = "adapter_model.safetensors"


def logits(model):
    with torch.no_grad():
        return model.eval()(**batch(), gumbel_noise=gumbel(3)).logits


ORDERS = ["patch first", "adapter first"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("pivot_grad", [False, True])
def test_gradients_equal_the_oracle_on_the_adapted_stock_model(order, pivot_grad):
    stock, wrapped = adapted(order, CCConfig(pivot_grad=pivot_grad))
    expected_model = peft.get_peft_model(stock, lora(modules_to_save=None))
    state = {n: p for n, p in wrapped.state_dict().items() if "lora_" in n}
    expected_model.load_state_dict(state, strict=False)
    weight = cc_of(wrapped).decision_maker.weight.detach().clone().requires_grad_()
    data, noise = batch(), gumbel(3)
    loss = training_forward(stock, weight, data, noise, [6, 5, 4], [8, 7, 6], pivot_grad=pivot_grad)
    loss.backward()
    output = wrapped.train()(**data, gumbel_noise=noise)
    output.loss.backward()
    torch.testing.assert_close(output.loss, loss, rtol=0, atol=1e-6)
    expected = {n: p.grad for n, p in expected_model.named_parameters() if p.grad is not None}
    actual = {n: p.grad for n, p in wrapped.named_parameters() if p.grad is not None}
    maker = [name for name in actual if "decision_maker" in name]
    assert len(maker) == 1, "the adapter's copy trains, the original does not"
    assert "modules_to_save.default" in maker[0]
    assert_same_gradients({"w": actual.pop(maker[0])}, {"w": weight.grad})
    assert_same_gradients(actual, expected)
    assert {name.split(".")[-4] for name in expected if "lora_B" in name} == set(PROJECTIONS)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("loader", ["PeftModel.from_pretrained", "load_adapter"])
def test_checkpoint_holds_all_of_the_connection(order, loader, tmp_path):
    config = CCConfig(inject_layer=1, pivot_grad=True)
    _, wrapped = adapted(order, config)
    cc_of(wrapped).transform_matrix = torch.stack([random_matrix(wrapped.get_base_model(), seed=s) for s in range(4)])
    cc_of(wrapped).transform_bias = torch.ones(64)
    wrapped.save_pretrained(tmp_path)
    base = tiny_model(initializer_range=0.15)
    if loader == "load_adapter":
        again = load_adapter(base, tmp_path)
    else:
        again = peft.PeftModel.from_pretrained(patch_model(base, config), tmp_path)
    assert cc_of(again).config == config
    for name in ("transform_matrix", "transform_bias"):
        assert torch.equal(getattr(cc_of(again), name), getattr(cc_of(wrapped), name))
    assert torch.equal(cc_of(again).decision_maker.weight, cc_of(wrapped).decision_maker.weight)
    assert torch.equal(logits(again), logits(wrapped))
    ids = batch()["input_ids"][:1]
    assert torch.equal(again.generate(input_ids=ids, **GREEDY), wrapped.eval().generate(input_ids=ids, **GREEDY))


def test_full_state_dict_of_an_adapted_model_loads_strictly():
    """As accelerate's `load_state` does: the matrix stands in it twice, and the copy may or may not be there yet."""
    _, source = adapted()
    cc_of(source).transform_matrix = random_matrix(source.get_base_model())
    state = source.state_dict()
    for _ in range(2):
        _, target = adapted()
        target.load_state_dict(state)
        assert torch.equal(cc_of(target).transform_matrix, cc_of(source).transform_matrix)
        target.state_dict()  # puts the copies there
        target.load_state_dict(state)
        assert torch.equal(cc_of(target).transform_matrix, cc_of(source).transform_matrix)


def test_saved_matrix_is_the_one_in_use(tmp_path):
    """The copy in the adapter is made anew at every save."""
    _, wrapped = adapted()
    cc_of(wrapped).transform_matrix = random_matrix(wrapped.get_base_model())
    wrapped.save_pretrained(tmp_path)
    with torch.no_grad():
        cc_of(wrapped).transform_matrix.mul_(2)
    wrapped.to(torch.float64)
    wrapped.save_pretrained(tmp_path)
    saved = load_file(tmp_path / ADAPTER_FILE)["base_model.model.cc.decision_maker.transform_matrix"]
    assert torch.equal(saved, cc_of(wrapped).transform_matrix)
    cc_of(wrapped).transform_matrix = None
    wrapped.save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / ADAPTER_FILE) if "transform_matrix" in name]


def test_reload_into_the_same_adapter(tmp_path):
    """As Trainer's `load_best_model_at_end` does."""
    _, wrapped = adapted()
    cc_of(wrapped).transform_matrix = random_matrix(wrapped.get_base_model())
    expected = logits(wrapped)
    wrapped.save_pretrained(tmp_path)
    fill(wrapped, seed=1)
    cc_of(wrapped).transform_matrix = random_matrix(wrapped.get_base_model(), seed=5)
    wrapped.load_adapter(tmp_path, "default")
    assert torch.equal(logits(wrapped), expected)
    assert torch.equal(cc_of(wrapped).transform_matrix, random_matrix(wrapped.get_base_model()))


def test_reload_of_a_checkpoint_from_before_the_matrix(tmp_path):
    """PEFT asks the checkpoint for all that the copy holds; without the matrix the copy holds what it did then."""
    _, wrapped = adapted()
    wrapped.save_pretrained(tmp_path)
    cc_of(wrapped).transform_matrix = random_matrix(wrapped.get_base_model())
    wrapped.state_dict()
    with pytest.raises(KeyError, match="transform_matrix"):
        wrapped.load_adapter(tmp_path, "default")
    cc_of(wrapped).transform_matrix = None
    wrapped.state_dict()
    wrapped.load_adapter(tmp_path, "default")
    assert cc_of(wrapped).transform_matrix is None


def test_other_options_raise(tmp_path):
    _, wrapped = adapted(config=CCConfig(inject_layer=2))
    wrapped.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"options: the adapter was trained with CCConfig\(inject_layer=2"):
        peft.PeftModel.from_pretrained(patch_model(tiny_model()), tmp_path)
    with pytest.raises(ValueError, match="config: the model is patched with"):
        load_adapter(patch_model(tiny_model()), tmp_path)


def test_adapter_without_a_connection(tmp_path):
    peft.get_peft_model(tiny_model(), lora(modules_to_save=None)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="directory: expected an adapter with a connection in"):
        load_adapter(tiny_model(), tmp_path)


def test_adapter_saved_before_options_were_carried(tmp_path):
    """The Decision Maker alone, as earlier versions saved it."""
    _, wrapped = adapted()
    wrapped.save_pretrained(tmp_path)
    weights = load_file(tmp_path / ADAPTER_FILE)
    del weights["base_model.model.cc.decision_maker.options"]
    save_file(weights, tmp_path / ADAPTER_FILE)
    again = peft.PeftModel.from_pretrained(patch_model(tiny_model()), tmp_path)
    assert torch.equal(cc_of(again).decision_maker.weight, cc_of(wrapped).decision_maker.weight)


def test_merge_and_unload(tmp_path):
    _, wrapped = adapted()
    cc_of(wrapped).transform_matrix = random_matrix(wrapped.get_base_model())
    wrapped.save_pretrained(tmp_path / "adapter")  # the merged copy must not keep what was carried
    expected, weight = logits(wrapped), cc_of(wrapped).decision_maker.weight
    merged = wrapped.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-4)
    assert torch.equal(merged.cc.decision_maker.weight, weight)
    assert {name for name in merged.state_dict() if "cc." in name} == {
        "cc.decision_maker.weight",
        "cc.transform_matrix",
    }
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(from_pretrained(tmp_path / "merged")), logits(merged))


def test_disable_adapter_is_the_base_model_with_its_own_decision_maker():
    stock, wrapped = adapted()
    _, base = pair()
    assert not torch.equal(logits(wrapped), logits(base))
    with wrapped.disable_adapter():
        assert torch.equal(logits(wrapped), logits(base))
        ids = batch()["input_ids"]
        assert torch.equal(wrapped(input_ids=ids).logits, stock(ids).logits)


def test_two_adapters():
    """Each has a Decision Maker of its own; the matrix and the options belong to the model."""
    _, wrapped = adapted()
    first = logits(wrapped)
    wrapped.add_adapter("second", lora())
    wrapped.set_adapter("second")
    assert not torch.equal(logits(wrapped), first)
    assert cc_of(wrapped).decision_maker.weight is cc_of(wrapped).decision_maker.modules_to_save["second"].weight
    wrapped.set_adapter("default")
    assert torch.equal(logits(wrapped), first)


def test_fit_on_an_adapted_model():
    _, wrapped = adapted()
    ids = batch(8)["input_ids"]
    fit_transform_matrix(wrapped, [{"input_ids": ids, "pivot_input_ids": ids.flip(1)}], progress=False)
    assert cc_of(wrapped).transform_matrix.any()


def test_frozen_adapter_stays_frozen_when_patched(tmp_path):
    peft.get_peft_model(tiny_model(), lora(modules_to_save=None)).save_pretrained(tmp_path)
    wrapped = patch_model(peft.PeftModel.from_pretrained(tiny_model(), tmp_path))
    assert not any(parameter.requires_grad for parameter in wrapped.parameters())


@pytest.mark.parametrize("order", ORDERS)
def test_prompt_tuning(order, tmp_path):
    """Virtual tokens move the labels, and with them the default connection index."""
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=2,
        modules_to_save=["decision_maker"] if order == "patch first" else None,
    )
    _, model = pair()
    base = model if order == "patch first" else tiny_model(initializer_range=0.15)
    wrapped = patch_model(peft.get_peft_model(base, config))
    data, noise = batch(), gumbel(3)
    embeds = wrapped.get_prompt(batch_size=3)
    data_by_hand = {
        **{name: value for name, value in data.items() if name.startswith("pivot")},
        "inputs_embeds": torch.cat([embeds, wrapped.get_input_embeddings()(data["input_ids"])], dim=1),
        "attention_mask": torch.cat([torch.ones(3, 2), data["attention_mask"]], dim=1),
        "labels": torch.cat([torch.full((3, 2), -100), data["labels"]], dim=1),
    }
    output = wrapped.train()(**data, gumbel_noise=noise)
    expected = wrapped.get_base_model()(**data_by_hand, gumbel_noise=noise, connection_index=torch.tensor([8, 7, 6]))
    assert torch.equal(output.loss, expected.loss)
    output.loss.backward()
    assert wrapped.get_base_model().cc.decision_maker.weight.grad.any()
    wrapped.save_pretrained(tmp_path)
    again = load_adapter(tiny_model(initializer_range=0.15), tmp_path)
    assert torch.equal(logits(again), logits(wrapped))


def test_wrapped_connection_raises():
    _, model = pair()
    wrapped = peft.get_peft_model(model, lora(modules_to_save=["cc"]))
    with pytest.raises(RuntimeError, match=r"model.cc: expected the connection, got ModulesToSaveWrapper"):
        wrapped(**batch())


def test_adapter_output_is_not_written_to():
    """An adapter's inner layer may hand the same tensor to hooks, so the connection adds out of place there."""
    _, model = pair()
    wrapped = peft.get_peft_model(model, lora()).eval()
    kept = []
    down = model.model.layers[0].mlp.down_proj.base_layer
    down.register_forward_hook(lambda module, args, output: kept.append((output, output.clone())))
    with wrapped.disable_adapter():
        wrapped(**batch())
    assert len(kept) == 2
    assert all(torch.equal(output, copied) for output, copied in kept)
