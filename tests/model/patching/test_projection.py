"""Projections without the calls of their modules: only where nobody would miss the call."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torch.nn.modules.module as module_hooks
from model_pairs import assert_same_gradients, batch, gradients, gumbel, pair
from torch import nn

from cc_model.patching import projection
from cc_model.patching.projection import plain_weights, project

X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def products(monkeypatch):
    """The weights of the products that were made without a module's call."""
    made = []
    functional = SimpleNamespace(linear=lambda x, weight, bias: made.append(weight) or F.linear(x, weight, bias))
    monkeypatch.setattr(projection, "F", functional)
    return made


@pytest.mark.parametrize("bias", [True, False])
def test_a_plain_projection(bias):
    linear = nn.Linear(4, 5, bias=bias)
    assert torch.equal(project(linear, X), linear(X))


def test_it_is_made_without_the_call(products):
    linear = nn.Linear(4, 5, bias=False)
    assert project(linear, X).shape == (2, 3, 5)
    assert products == [linear.weight]


def subclass(linear):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    linear.__class__ = Doubled


def own_forward(linear):
    linear.forward = lambda x: 2 * F.linear(x, linear.weight)


def plain_attributes(linear):
    """As FSDP keeps parameters while a module runs."""
    weight = linear.weight
    del linear._parameters["weight"]
    linear.weight = 2 * weight.detach()


def doubling_hook(linear):
    linear.register_forward_hook(lambda module, args, output: 2 * output)


def doubling_pre_hook(linear):
    linear.register_forward_pre_hook(lambda module, args: (2 * args[0],))


WATCHED = {
    "hook": doubling_hook,
    "pre-hook": doubling_pre_hook,
    "subclass": subclass,
    "own forward": own_forward,
    "plain attributes": plain_attributes,
}


@pytest.mark.parametrize("how", WATCHED)
def test_what_is_attached_stays_in_effect(how):
    linear = nn.Linear(4, 5, bias=False)
    expected = 2 * linear(X)
    WATCHED[how](linear)
    torch.testing.assert_close(project(linear, X), expected)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_hooks_are_called(kind, everywhere):
    linear, seen = nn.Linear(4, 5, bias=False), []
    where = module_hooks if everywhere else linear
    handle = getattr(where, f"register_{'module_' if everywhere else ''}{kind}_hook")(lambda *args: seen.append(kind))
    try:
        project(linear, X.clone().requires_grad_()).sum().backward()
    finally:
        handle.remove()
    assert seen


def test_a_compiled_projection_is_called(products):
    linear = nn.Linear(4, 5)
    linear.compile(backend="eager")
    project(linear, X)
    assert not products


def test_a_forward_that_was_replaced_for_all_modules(monkeypatch):
    linear = nn.Linear(4, 5, bias=False)
    expected = 2 * linear(X)
    stock = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: 2 * stock(self, x))
    torch.testing.assert_close(project(linear, X), expected)


def test_a_training_step_is_the_same_with_module_calls(architecture):
    _, model = pair(architecture)
    other = copy.deepcopy(model)
    for layer in other.model.layers:
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            linear.register_forward_hook(lambda module, args, output: None)
    for each in (model, other):
        each.train()(**batch(), gumbel_noise=gumbel(3)).loss.backward()
    assert_same_gradients(gradients(model), gradients(other), tolerance=1e-6)


def test_weights_are_known_of_plain_projections_only(monkeypatch):
    """Compiled code calls modules, as `project` does there: it would guard all that is asked of them."""
    plain, other = nn.Linear(4, 5, bias=False), nn.Linear(5, 4)
    found = plain_weights(plain, plain)
    assert found is not None
    assert all(weight is plain.weight for weight in found)
    assert plain_weights(plain, other) is None  # a bias
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert plain_weights(plain, plain) is None
