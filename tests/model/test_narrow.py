"""The last layer's feed-forward block runs on the captured tokens alone where nobody reads the pass's result."""

from __future__ import annotations

import pytest
import torch
from generation_helpers import GREEDY, prompts
from model_pairs import assert_same_gradients, batch, gradients, gumbel, pair

from cc_model import CCConfig, fit_transform_matrix, passes, report
from cc_model.specs import layers_of


def count_tokens(model):
    """Tokens that `down_proj` of the first and the last layer saw in each run; a `forward` of its own is no hook."""
    seen = {}
    for where, layer in (("first", layers_of(model)[0]), ("last", layers_of(model)[-1])):
        projection, lengths = layer.mlp.down_proj, seen.setdefault(where, [])
        stock = projection.forward

        def forward(x, stock=stock, lengths=lengths):
            lengths.append(x.shape[:-1].numel())
            return stock(x)

        projection.forward = forward
    return seen


@pytest.fixture
def wide(monkeypatch):
    """A switch: every pass runs the last layer on all tokens, as without this shortcut."""
    stock = passes.CapturePass.__init__
    return lambda: monkeypatch.setattr(
        passes.CapturePass, "__init__", lambda self, rows, slots, narrow: stock(self, rows, slots, False)
    )


def test_prefill(architecture):
    _, model = pair(architecture, matrix=True)
    ids, mask = prompts()
    seen = count_tokens(model)
    model.generate(ids, attention_mask=mask, **{**GREEDY, "max_new_tokens": 1})
    assert seen == {"first": [27, 3], "last": [3, 3]}


@pytest.mark.parametrize("pivot_grad", [False, True])
def test_training_step_has_the_same_loss_and_gradients(architecture, pivot_grad, wide):
    _, model = pair(architecture, CCConfig(pivot_grad=pivot_grad))
    seen = count_tokens(model)
    data, noise = batch(), gumbel(3)
    results = []
    for prepare in (lambda: None, wide):
        prepare()
        model.zero_grad()
        output = model.train()(**data, gumbel_noise=noise)
        output.loss.backward()
        results.append((output, {name: grad.clone() for name, grad in gradients(model).items()}))
    (narrow, narrow_grads), (full, full_grads) = results
    assert seen["first"] == [27, 36, 27, 36]
    assert seen["last"] == [3, 36, 27, 36]
    torch.testing.assert_close(narrow.logits, full.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(narrow.loss, full.loss, rtol=0, atol=1e-6)
    assert_same_gradients(narrow_grads, full_grads, tolerance=1e-5)


def test_fit_gives_the_same_matrix(wide):
    _, model = pair("llama")
    data = {name: value for name, value in batch().items() if name != "labels"}
    seen = count_tokens(model)
    found = []
    for prepare in (lambda: None, wide):
        prepare()
        fit_transform_matrix(model, [data], ridge=1e-2, progress=False)
        found.append(model.cc.transform_matrix.clone())
    assert seen["last"][:2] == [3, 3]
    assert max(seen["last"][2:]) > 3
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "last"),
    [
        ({}, 36),  # the logits of all tokens
        ({"logits_to_keep": 1}, 3),
        ({"logits_to_keep": 6}, 3),  # from the first connection on
        ({"logits_to_keep": 7}, 36),
        ({"logits_to_keep": torch.tensor([11])}, 36),
        ({"logits_to_keep": 1, "output_hidden_states": True}, 36),
        ({"logits_to_keep": 1, "output_attentions": True}, 3),
    ],
)
def test_what_is_read_is_computed(options, last, wide):
    _, model = pair(matrix=True, attn_implementation="eager")
    ids, index = batch()["input_ids"], torch.tensor([6, 8, 7])
    seen = count_tokens(model)
    with torch.no_grad():
        narrow = model(ids, connection_index=index, **options)
        wide()
        full = model(ids, connection_index=index, **options)
    assert seen["last"][0] == last
    torch.testing.assert_close(narrow.logits, full.logits, rtol=0, atol=1e-5)
    for name in ("hidden_states", "attentions"):
        for a, b in zip(getattr(narrow, name) or (), getattr(full, name) or (), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_two_prefills_read_nothing_of_the_first():
    _, model = pair(matrix=True)
    seen = count_tokens(model)
    model(batch()["input_ids"])  # with gradients enabled: two full passes
    assert seen == {"first": [36, 36], "last": [3, 36]}


def register_backward_hook(module, hook):
    return module.register_full_backward_hook(lambda *_: None)


@pytest.mark.parametrize(
    "register",
    [
        torch.nn.Module.register_forward_hook,
        torch.nn.Module.register_forward_pre_hook,
        register_backward_hook,
        lambda module, hook: torch.nn.modules.module.register_module_forward_hook(lambda *_: None),
        lambda module, hook: torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: None),
    ],
)
@pytest.mark.parametrize("where", ["mlp", "mlp.up_proj"])
def test_hooks_see_every_token(register, where):
    _, model = pair(matrix=True)
    handle = register(layers_of(model)[-1].get_submodule(where), lambda *_: None)
    try:
        seen = count_tokens(model)
        with torch.no_grad():
            model(batch()["input_ids"], logits_to_keep=1)
        assert seen["last"][0] == 36
        assert "on all tokens, because a hook" in str(report(model))
    finally:
        handle.remove()
    assert "on the captured tokens alone" in str(report(model))
