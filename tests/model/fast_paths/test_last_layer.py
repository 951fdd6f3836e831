"""The last layer's feed-forward block runs on the captured tokens alone where nobody reads the pass's result."""

from __future__ import annotations

import pytest
import torch
from generation_helpers import GREEDY, prompts
from model_pairs import assert_same_gradients, at_end, batch, gradients, gumbel, pair
from torch import nn

from cc_model import CCConfig, fit_transform_matrix, patch_model, report
from cc_model.forward import passes
from cc_model.forward.bank import captured_bank
from cc_model.forward.passes import active
from cc_model.patching import decoder
from cc_model.specs import layers_of
from cc_model.testing import tiny_model

LAYERS = 4
AT_END = at_end(batch()["input_ids"])
modules = torch.nn.modules.module


class Seen(list):
    """Tokens of each SwiGLU, in the order of the layers."""

    @property
    def passes(self):
        """Of each pass, the tokens that the first and the last layer ran on."""
        assert len(self) % LAYERS == 0
        return list(zip(self[::LAYERS], self[LAYERS - 1 :: LAYERS]))


@pytest.fixture
def seen(monkeypatch):
    counted, stock = Seen(), decoder.swiglu

    def swiglu(gate, up):
        counted.append(gate.shape[:-1].numel())
        return stock(gate, up)

    monkeypatch.setattr(decoder, "swiglu", swiglu)
    return counted


@pytest.fixture
def wide(monkeypatch):
    """A switch: every pass runs the last layer on all tokens, as without this shortcut."""
    stock = passes.CapturePass.__init__

    def wide_pass(self, rows, slots, body, read=False):
        stock(self, rows, slots, body, read=True)

    return lambda: monkeypatch.setattr(passes.CapturePass, "__init__", wide_pass)


def test_prefill(architecture, seen):
    _, model = pair(architecture, matrix=True)
    ids, mask = prompts()
    model.generate(ids, attention_mask=mask, **{**GREEDY, "max_new_tokens": 1})
    assert seen.passes == [(27, 3), (3, 3)]


@pytest.mark.parametrize("pivot_grad", [False, True])
def test_training_step_has_the_same_loss_and_gradients(architecture, pivot_grad, seen, wide):
    _, model = pair(architecture, CCConfig(pivot_grad=pivot_grad))
    data, noise = batch(), gumbel(3)
    results = []
    for prepare in (lambda: None, wide):
        prepare()
        model.zero_grad()
        output = model.train()(**data, gumbel_noise=noise)
        output.loss.backward()
        results.append((output, {name: grad.clone() for name, grad in gradients(model).items()}))
    (narrow, narrow_grads), (full, full_grads) = results
    assert seen.passes == [(27, 3), (36, 36), (27, 27), (36, 36)]
    torch.testing.assert_close(narrow.logits, full.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(narrow.loss, full.loss, rtol=0, atol=1e-6)
    assert_same_gradients(narrow_grads, full_grads, tolerance=1e-5)


def test_simulated_training(seen):
    _, model = pair("llama", CCConfig(simulated_share=1.0), matrix=True)
    model.train()(**batch())
    assert seen.passes == [(36, 3), (36, 36)]


def test_fit_gives_the_same_matrix(seen, wide):
    _, model = pair("llama")
    data = {name: value for name, value in batch().items() if name != "labels"}
    found = []
    for prepare in (lambda: None, wide):
        prepare()
        fit_transform_matrix(model, [data], ridge=1e-2, progress=False)
        found.append(model.cc.transform_matrix.clone())
    assert seen.passes == [(36, 3), (27, 3), (36, 36), (27, 27)]
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
def test_what_is_read_is_computed(options, last, seen, wide):
    _, model = pair(matrix=True, attn_implementation="eager")
    ids, index = batch()["input_ids"], torch.tensor([6, 8, 7])
    with torch.no_grad():
        narrow = model(ids, connection_index=index, **options)
        wide()
        full = model(ids, connection_index=index, **options)
    assert seen.passes[0] == (36, last)
    torch.testing.assert_close(narrow.logits, full.logits, rtol=0, atol=1e-5)
    for name in ("hidden_states", "attentions"):
        for a, b in zip(getattr(narrow, name) or (), getattr(full, name) or (), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_hidden_states_asked_by_the_config(seen):
    _, model = pair(matrix=True)
    ids, index = batch()["input_ids"], torch.tensor([6, 8, 7])
    model.config.output_hidden_states = True
    with torch.no_grad():
        model(ids, connection_index=index, logits_to_keep=1)
        assert seen.passes[0] == (36, 36)
        model.config.output_hidden_states = False
        seen.clear()
        model(ids, connection_index=index, logits_to_keep=1)  # the hooks of transformers stay behind, asleep
    assert seen.passes[0] == (36, 3)


def test_two_prefills_read_nothing_of_the_first(seen):
    _, model = pair(matrix=True)
    model(batch()["input_ids"], **AT_END)  # with gradients enabled: two full passes
    assert seen.passes == [(36, 3), (36, 36)]


HOOKS = {
    "forward": nn.Module.register_forward_hook,
    "forward_pre": nn.Module.register_forward_pre_hook,
    "backward": nn.Module.register_full_backward_hook,
    "backward_pre": nn.Module.register_full_backward_pre_hook,
    "global_forward": lambda module, hook: modules.register_module_forward_hook(hook),
    "global_forward_pre": lambda module, hook: modules.register_module_forward_pre_hook(hook),
    "global_backward": lambda module, hook: modules.register_module_full_backward_hook(hook),
    "global_backward_pre": lambda module, hook: modules.register_module_full_backward_pre_hook(hook),
}


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("where", ["layers.3", "layers.3.mlp", "layers.3.mlp.up_proj", "layers.3.self_attn", "norm"])
def test_hooks_see_every_token(kind, where, seen):
    _, model = pair(matrix=True)
    handle = HOOKS[kind](model.model.get_submodule(where), lambda *_: None)
    try:
        with torch.no_grad():
            model(batch()["input_ids"], **AT_END, logits_to_keep=1)
        assert seen.passes[0] == (36, 36)
        assert "runs on all tokens (" in str(report(model))
    finally:
        handle.remove()
    assert "on the captured tokens alone" in str(report(model))


def test_hooks_elsewhere_change_nothing(seen):
    _, model = pair(matrix=True)
    for module in (model, model.model, model.model.layers[2], model.lm_head):
        module.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        model(batch()["input_ids"], **AT_END, logits_to_keep=1)
    assert seen.passes[0] == (36, 3)


def own_forward(model):
    projection = layers_of(model)[-1].mlp.down_proj
    stock = projection.forward
    projection.forward = lambda x: stock(x)
    return "Linear has a forward of its own"


def other_linear(model):
    class Scaled(nn.Linear):
        """Scales by the largest value of all rows."""

        def forward(self, x):
            return super().forward(x) * x.abs().max()

    layers_of(model)[-1].mlp.up_proj.__class__ = Scaled
    return "Scaled may not treat rows one by one"


def other_weight(model):
    class Packed(torch.Tensor):
        pass

    projection = layers_of(model)[-1].mlp.up_proj
    projection.weight = nn.Parameter(projection.weight.detach().as_subclass(Packed))
    return "Linear may not treat rows one by one"


def other_activation(model):
    layers_of(model)[-1].mlp.act_fn = nn.Softmax(dim=1)
    return "Softmax may not treat rows one by one"


def compiled(model):
    layers_of(model)[-1].compile(backend="eager")
    return "it is compiled"


@pytest.mark.parametrize("change", [own_forward, other_linear, other_weight, other_activation, compiled])
def test_what_is_not_known_runs_on_all_tokens(change, seen):
    _, model = pair(matrix=True)
    why = change(model)
    assert f"all tokens ({why}" in str(report(model))
    if change is not compiled:  # the counter would be traced
        with torch.no_grad():
            model(batch()["input_ids"], **AT_END, logits_to_keep=1)
        assert seen.passes[0] == (36, 36)


def test_a_stock_forward_that_is_not_gated_runs_on_all_tokens():
    model = patch_model(tiny_model("llama", hidden_act="relu"))
    assert "all tokens (LlamaMLP runs a forward that is not known)" in str(report(model))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_adapters_of_peft(dropout, seen):
    peft = pytest.importorskip("peft")
    _, model = pair(matrix=True)
    options = {"target_modules": ["gate_proj", "down_proj", "q_proj"], "lora_dropout": dropout}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options, init_lora_weights=False)).eval()
    with torch.no_grad():
        adapted(batch()["input_ids"], **AT_END, logits_to_keep=1)
        assert seen.passes[0] == (36, 3)
        seen.clear()
        layers_of(model)[-1].mlp.gate_proj.lora_A.default.register_forward_hook(lambda *_: None)
        adapted(batch()["input_ids"], **AT_END, logits_to_keep=1)
    assert seen.passes[0] == (36, 36)


def test_layers_in_another_order():
    """The last layer is the one that runs last, not the one that was last when the model was patched."""
    _, model = pair()
    ids = batch()["input_ids"]
    model.model.layers = nn.ModuleList([model.model.layers[i] for i in (0, 1, 3, 2)])
    with torch.no_grad():
        for layer in layers_of(model):
            layer.self_attn.layer_idx = 0
        narrow, _ = captured_bank(model, model, ids, None, None)
        layers_of(model)[-1].register_forward_hook(lambda *_: None)
        full, _ = captured_bank(model, model, ids, None, None)
    torch.testing.assert_close(narrow, full, rtol=0, atol=1e-5)


def test_the_layer_may_write_to_the_result(seen):
    """A layer of another library that adds the residual in place, and calls its block by keyword."""
    _, model = pair(matrix=True)
    layer = layers_of(model)[-1]

    class InPlace(type(layer)):
        def forward(self, hidden_states, cc_pass=None, **kwargs):
            active.layer_pass, before = cc_pass, active.layer_pass
            try:
                normed = self.input_layernorm(hidden_states)
                hidden_states = hidden_states + self.self_attn(hidden_states=normed, **kwargs)[0]
                out = self.mlp(x=self.post_attention_layernorm(hidden_states))
                out += hidden_states
                return out
            finally:
                active.layer_pass = before

    with torch.no_grad():
        expected = model(batch()["input_ids"], **AT_END, logits_to_keep=1).logits
        layer.__class__ = InPlace
        found = model(batch()["input_ids"], **AT_END, logits_to_keep=1).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert seen.passes[2] == (36, 3)
