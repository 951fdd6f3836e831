"""Modules that other libraries replace or wrap: still connected, or an error that names the module."""

from __future__ import annotations

from types import MethodType

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from model_pairs import assert_same_gradients, at_end, batch, gradients, gumbel, pair

from cc_model import patch_model, report
from cc_model.specs import layers_of
from cc_model.testing import random_matrix, tiny_model


def foreign_forward(self, x):
    """What another library puts on an instance."""
    return self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


@pytest.mark.parametrize("when", ["before", "after"])
def test_instance_forward_of_a_block_stays_connected(when):
    _, expected_model = pair(matrix=True)
    model = tiny_model()
    blocks = [layer.mlp for layer in model.model.layers]
    if when == "after":
        patch_model(model)
    for block in blocks:
        block.forward = MethodType(foreign_forward, block)
    patch_model(model)
    model.load_state_dict(expected_model.state_dict())
    data, noise = batch(), gumbel(3)
    # A forward that is not known runs on all tokens, and so does one with a hook: bits are compared.
    expected_model.model.norm.register_forward_hook(lambda *_: None)
    assert torch.equal(model(**data, gumbel_noise=noise).logits, expected_model(**data, gumbel_noise=noise).logits)
    assert "instance-level forward" in str(report(model))
    assert report(model).layers[0].path == "fallback"


@pytest.mark.parametrize("when", ["before", "after"])
def test_instance_forward_of_the_model_stays_connected(when):
    """As Liger's instance mode does: a forward of its own that runs the decoder body and the head."""
    _, expected_model = pair()
    model = tiny_model()

    def foreign(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        return type(self).__mro__[2].forward(self, input_ids, attention_mask, labels=labels, **kwargs)

    if when == "before":
        foreign_before = lambda self, **kwargs: type(tiny_model()).forward(self, **kwargs)  # noqa: E731
        model.forward = MethodType(foreign_before, model)
        patch_model(model)
    else:
        patch_model(model)
        model.forward = MethodType(foreign, model)
    model.load_state_dict(expected_model.state_dict())
    data, noise = batch(), gumbel(3)
    output = model(**data, gumbel_noise=noise)
    assert torch.equal(output.logits, expected_model(**data, gumbel_noise=noise).logits)
    assert output.decision_weights is not None


@pytest.mark.parametrize("when", ["before", "after"])
def test_accelerate_hooks(when):
    """Hooks replace `forward` on instances and call the one that they found."""
    _, expected_model = pair(matrix=True)
    model = tiny_model()
    if when == "after":
        patch_model(model)
    for module in [model, model.model, *model.model.layers, *(layer.mlp for layer in model.model.layers)]:
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
    patch_model(model)
    model.load_state_dict(expected_model.state_dict())
    data, noise = batch(), gumbel(3)
    expected = expected_model(**data, gumbel_noise=noise)
    assert torch.equal(model(**data, gumbel_noise=noise).logits, expected.logits)
    ids = data["input_ids"]
    with torch.no_grad():
        assert torch.equal(model(ids, **at_end(ids)).logits, expected_model(ids, **at_end(ids)).logits)


def test_replaced_block_raises():
    _, model = pair(matrix=True)
    model.model.layers[2].mlp = type(tiny_model().model.layers[2].mlp)(model.config)
    ids = batch()["input_ids"]
    for data in (batch(), {"input_ids": ids, **at_end(ids)}):
        with pytest.raises(RuntimeError, match="block of layer 2, LlamaMLP, was replaced"), torch.no_grad():
            model(**data)
    assert report(model).layers[2].path == "fallback"


def test_replaced_layer_raises():
    _, model = pair()
    stock_layer = type(tiny_model().model.layers[1])
    model.model.layers[1].__class__ = stock_layer
    with pytest.raises(RuntimeError, match=r"blocks of layers \[1\] of 4 did not capture"):
        model(**batch())


def test_lost_injection_raises():
    _, model = pair()
    block = model.model.layers[0].mlp
    block.cc_slot.injects = False
    with pytest.raises(RuntimeError, match="expected one injection, got 0"):
        model(**batch())
    model.cc.transform_matrix = random_matrix(model)
    with pytest.raises(RuntimeError, match="expected one injection, got 0"):
        model.eval().generate(batch()["input_ids"], max_new_tokens=1)


def test_direct_body_call_with_a_matrix_raises():
    _, model = pair(matrix=True)
    with pytest.raises(RuntimeError, match="decoder body was called directly"):
        model.model(batch()["input_ids"])
    with pytest.raises(RuntimeError, match="pivot_input_ids reached the decoder body"):
        model.train().model(batch()["input_ids"], pivot_input_ids=batch()["pivot_input_ids"])
    assert model.model(batch()["input_ids"]).last_hidden_state.shape == (3, 12, 64)


@pytest.mark.parametrize("where", ["mlp", "mlp.down_proj", "global"])
@pytest.mark.parametrize("kind", ["backward_hook", "backward_pre_hook"])
def test_backward_hooks_leave_the_step_as_it_is(where, kind):
    """They make the feed-forward output a view that autograd lets nobody write to."""
    _, model = pair()
    data, noise = batch(), gumbel(3)
    model.train()(**data, gumbel_noise=noise).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    if where == "global":
        handle = getattr(torch.nn.modules.module, f"register_module_full_{kind}")(lambda *_: None)
    else:
        module = model.model.layers[0].get_submodule(where)
        handle = getattr(module, f"register_full_{kind}")(lambda *_: None)
    try:
        model(**data, gumbel_noise=noise).loss.backward()
    finally:
        handle.remove()
    assert_same_gradients(gradients(model), expected)


def test_forward_hooks_see_the_output_before_the_connection():
    """A hook may keep the feed-forward output, so the connection must not write into it."""
    _, model = pair()
    data, noise = batch(), gumbel(3)
    kept = []
    block = model.model.layers[0].mlp
    handle = block.register_forward_hook(lambda module, args, output: kept.append((output, output.clone())))
    hooked = model(**data, gumbel_noise=noise).logits
    handle.remove()
    assert len(kept) == 2  # pivot pass and main pass
    assert all(torch.equal(output, copied) for output, copied in kept)
    assert torch.equal(hooked, model(**data, gumbel_noise=noise).logits)


@pytest.mark.parametrize("name", ["gate_proj", "up_proj", "down_proj"])
def test_projection_kept_as_a_plain_attribute(name):
    """A library that takes a projection out of the modules and keeps it as an attribute: the block still finds it."""
    _, model = pair()
    data, noise = batch(), gumbel(3)
    expected = model.train()(**data, gumbel_noise=noise).loss
    block = layers_of(model)[1].mlp
    projection = block._modules.pop(name)
    object.__setattr__(block, name, projection)
    assert torch.equal(model(**data, gumbel_noise=noise).loss, expected)
