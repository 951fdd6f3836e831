"""`torch.func` and `torch.export` of a connected forward."""

from __future__ import annotations

import pytest
import torch
from model_pairs import batch, gradients, gumbel, pair
from torch.func import functional_call, grad, vmap

from cc_model import CCConfig

CONFIGS = [CCConfig(), CCConfig(pivot_grad=True), CCConfig(hard=False), CCConfig(hard=False, pivot_grad=True)]


def parameters(model):
    return {name: value.detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize("config", CONFIGS, ids=["default", "pivot_grad", "soft", "soft, pivot_grad"])
def test_grad_of_a_training_step(config):
    _, model = pair("llama", config)
    data = {**batch(), "gumbel_noise": gumbel(3)}
    model.train()(**data).loss.backward()
    found = grad(lambda values: functional_call(model, values, (), data).loss)(parameters(model))
    expected = gradients(model)
    assert found.keys() == expected.keys()
    assert found["cc.decision_maker.weight"].any()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_grad_with_the_matrix():
    _, model = pair(matrix=True)
    data = {name: value for name, value in batch().items() if not name.startswith("pivot")}
    model(**data).loss.backward()
    found = grad(lambda values: functional_call(model, values, (), data).loss)(parameters(model))
    for name, value in gradients(model).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    assert not found["cc.decision_maker.weight"].any()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("config", CONFIGS[:2], ids=["default", "pivot_grad"])
def test_gradients_of_each_row(config):
    """`vmap(grad)`: what a loop over rows gives."""
    _, model = pair("llama", config)
    data = {name: value for name, value in batch().items() if "mask" not in name} | {"gumbel_noise": gumbel(3)}

    def loss(values, row):
        return functional_call(model.train(), values, (), {name: value[None] for name, value in row.items()}).loss

    found = vmap(grad(loss), in_dims=(None, 0))(parameters(model), data)
    for b in range(3):
        model.zero_grad()
        model(**{name: value[b : b + 1] for name, value in data.items()}).loss.backward()
        for name, value in gradients(model).items():
            torch.testing.assert_close(found[name][b], value, rtol=1e-3, atol=1e-5)


def test_reentrant_checkpointing_under_a_transform_raises():
    """PyTorch says so: a transform has no backward inside a backward."""
    _, model = pair()
    model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(RuntimeError, match="functorch transform"):
        grad(lambda values: functional_call(model, values, (), batch()).loss)(parameters(model))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("mode", ["matrix", "english"])
def test_export(mode, strict):
    """One program for every connection index: nothing of the example's indices is baked in."""
    _, model = pair(matrix=True, num_hidden_layers=2)
    data = batch()
    given = {"input_ids": data["input_ids"], "attention_mask": data["attention_mask"], "use_cache": False}
    if mode == "english":
        given |= {name: data[name] for name in ("pivot_input_ids", "pivot_attention_mask")}
    first, second = torch.tensor([6, 5, 4]), torch.tensor([2, 9, -1])
    with torch.no_grad():
        program = torch.export.export(model, (), {**given, "connection_index": first}, strict=strict).module()
        for index in (first, second):
            found = program(**given, connection_index=index)
            expected = model(**given, connection_index=index)
            torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)
            torch.testing.assert_close(found.decision_weights, expected.decision_weights)
            assert expected.decision_weights.sum() == (index >= 0).sum()


def test_export_does_not_guess_either():
    _, model = pair(matrix=True)
    with pytest.raises(ValueError, match="connection_index: expected the token of each row to connect"):
        torch.export.export(model, (), {"input_ids": batch()["input_ids"], "use_cache": False}, strict=False)
