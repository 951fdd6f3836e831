"""Gradient checkpointing: losses and gradients are those without it; what would lose a gradient raises."""

from __future__ import annotations

import pytest
import torch
from model_pairs import assert_same_gradients, batch, gradients, gumbel, pair
from transformers import PreTrainedModel

from cc_model import CCConfig
from cc_model.forward.passes import CapturePass


def step(model, data, noise, accumulate=1):
    """Loss and gradients of one step, the backward run `accumulate` times over the same graph."""
    model.zero_grad()
    loss = model.train()(**data, gumbel_noise=noise).loss
    for left in reversed(range(accumulate)):
        loss.backward(retain_graph=left > 0)
    return loss.detach(), gradients(model)


@pytest.mark.parametrize("pivot_grad", [False, True])
def test_non_reentrant(architecture, pivot_grad):
    _, model = pair(architecture, CCConfig(pivot_grad=pivot_grad))
    data, noise = batch(), gumbel(3)
    loss, expected = step(model, data, noise)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again, actual = step(model, data, noise)
    assert torch.equal(loss, again)
    assert_same_gradients(actual, expected)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("options", [{}, {"inject_layer": 2}, {"hard": False}])
def test_options(options, reentrant):
    _, model = pair("llama", CCConfig(**options))
    data, noise = batch(), gumbel(3)
    loss, expected = step(model, data, noise)
    assert expected["cc.decision_maker.weight"].any()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again, actual = step(model, data, noise)
    assert torch.equal(loss, again)
    assert_same_gradients(actual, expected)


@pytest.mark.parametrize("pivot_grad", [False, True])
def test_noise_is_drawn_once(pivot_grad):
    """The recompute must not draw again: the decision stands, and so does the state of the generator."""
    _, model = pair("llama", CCConfig(pivot_grad=pivot_grad))
    data, found = batch(), []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        _, grads = step(model, data, noise=None)
        found.append((grads, torch.rand(1)))
    assert_same_gradients(found[1][0], found[0][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize(("pivot_grad", "reentrant"), [(False, False), (True, False), (False, True)])
def test_second_backward(pivot_grad, reentrant):
    _, model = pair("llama", CCConfig(pivot_grad=pivot_grad))
    data, noise = batch(), gumbel(3)
    _, expected = step(model, data, noise, accumulate=2)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_same_gradients(step(model, data, noise, accumulate=2)[1], expected)


def test_recompute_does_not_capture_again(monkeypatch):
    """What it captured would keep the activations of all layers, which checkpointing lets go, until the step ends."""
    _, model = pair("llama", CCConfig(pivot_grad=True))
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    passes, collect = [], CapturePass.collect

    def collected(self, device):
        passes.append((self, list(self.captured)))
        return collect(self, device)

    monkeypatch.setattr(CapturePass, "collect", collected)
    with torch.utils.checkpoint.set_checkpoint_early_stop(False):  # else most recomputes end before the capture
        model(**batch()).loss.backward()
    ((capture, first),) = passes
    assert all(now is then for now, then in zip(capture.captured, first, strict=True))


@pytest.mark.skipif(not hasattr(PreTrainedModel, "activation_checkpointing_enable"), reason="needs transformers 5.24")
def test_every_second_layer():
    _, model = pair("llama", CCConfig(pivot_grad=True))
    data, noise = batch(), gumbel(3)
    _, expected = step(model, data, noise)
    model.activation_checkpointing_enable({"use_reentrant": False}, every_n_layers=2)
    assert_same_gradients(step(model, data, noise)[1], expected)
    model.activation_checkpointing_enable({"use_reentrant": True}, every_n_layers=2)
    with pytest.raises(RuntimeError, match=r"pivot_grad.*use_reentrant"):
        step(model, data, noise)


def test_accumulated_reentrant_steps():
    _, model = pair()
    sums = []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable({"use_reentrant": True})
        model.train().zero_grad()
        for seed in (0, 1):
            model(**batch(seed=seed), gumbel_noise=gumbel(3, seed=seed)).loss.backward()
        sums.append(gradients(model))
    assert_same_gradients(sums[1], sums[0])


def test_reentrant_with_embeddings_given():
    _, model = pair()
    data, noise = batch(), gumbel(3)
    data["inputs_embeds"] = torch.randn(3, 12, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    del data["input_ids"]
    found = []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable({"use_reentrant": True})
        _, grads = step(model, data, noise)
        found.append({**grads, "inputs_embeds": data["inputs_embeds"].grad.clone()})
        data["inputs_embeds"].grad = None
    assert_same_gradients(found[1], found[0])


def test_reentrant_with_pivot_grad_raises():
    _, model = pair("llama", CCConfig(pivot_grad=True))
    model.train().gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(RuntimeError, match=r"pivot_grad.*use_reentrant"):
        model(**batch())
