"""A feed-forward block as one autograd function, and everything that must prevent it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torch.nn.modules.module as module_hooks
from interpreted import DEVICE, in_a_process_of_its_own, needs_kernels, run_interpreted
from model_pairs import assert_same_gradients, batch, gradients, gumbel, pair
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from cc_kernels import use_backend
from cc_model import report
from cc_model.fast_paths import whole_block
from cc_model.patching import decoder
from cc_model.patching.projection import plain_weights, runs_whole
from cc_model.specs import layers_of

LAYERS = 4


@pytest.fixture(autouse=True)
def kernels(request):
    with use_backend("triton" if request.node.name != "test_interpreted" else "auto"):
        yield


@pytest.fixture
def calls(monkeypatch):
    """The inputs of each block that ran as one function."""
    made, stock = [], decoder.whole_block
    monkeypatch.setattr(decoder, "whole_block", lambda x, *others: made.append(x.shape) or stock(x, *others))
    return made


def patched(architecture="llama", **options):
    stock, model = pair(architecture, **options)
    return stock.to(DEVICE).train(), model.to(DEVICE).train()


def rows(**sizes):
    return {name: value.to(DEVICE) for name, value in batch(**sizes).items()}


def plain(**sizes):
    return {name: value for name, value in rows(**sizes).items() if not name.startswith("pivot")}


def gradients_of(model, data):
    model.zero_grad()
    model(**data).loss.backward()
    return gradients(model)


@needs_kernels
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "gemma2"])
def test_gradients_are_those_of_the_stock_model(family, calls):
    stock, model = patched(family)
    found = gradients_of(model, plain())
    assert len(calls) == LAYERS
    expected = gradients_of(stock, plain())
    assert_same_gradients({name: found[name] for name in expected}, expected)


@needs_kernels
def test_the_connected_forward_and_its_gradients(calls, monkeypatch):
    """As with modules; the pivot pass makes no nodes, and its blocks run as before."""
    _, model = patched()
    data = {**rows(), "gumbel_noise": gumbel(3).to(DEVICE)}
    found, blocks = gradients_of(model, data), len(calls)
    monkeypatch.setattr(decoder, "runs_whole", lambda *_: False)
    assert_same_gradients(found, gradients_of(model, data))
    assert blocks == len(calls) == LAYERS


@needs_kernels
@pytest.mark.parametrize("learned", ["gate_proj", "up_proj", "down_proj", None])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu"])
def test_one_weight_learns_and_the_others_are_frozen(learned, activation):
    names = ("gate_proj", "up_proj", "down_proj")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 12, generator=generator).to(DEVICE).requires_grad_(learned is None)
    weights = [torch.randn(*shape, generator=generator).to(DEVICE) for shape in ((20, 12), (20, 12), (12, 20))]
    for name, weight in zip(names, weights):
        weight.requires_grad_(name == learned)
    seed = torch.randn(2, 5, 12, generator=generator).to(DEVICE)
    act = F.silu if activation == "silu" else lambda g: F.gelu(g, approximate=activation[5:] or "none")
    inner = act(F.linear(x, weights[0])) * F.linear(x, weights[1])
    asked = x if learned is None else weights[names.index(learned)]
    (expected,) = torch.autograd.grad(F.linear(inner, weights[2]), asked, seed)
    output = whole_block.whole_block(x, *weights, activation)
    kept = [saved for saved in output.grad_fn.saved_tensors if saved is not None]
    assert any(saved is x for saved in kept) == (learned in ("gate_proj", "up_proj"))
    assert sum(saved.shape[-1] == 20 and saved.ndim == 3 for saved in kept) == 2  # gate and up, and no product
    for again in (True, False):  # the first backward writes to nothing that the second one needs
        (found,) = torch.autograd.grad(output, asked, seed, retain_graph=again)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@needs_kernels
def test_incoming_gradients_of_any_strides():
    _, model = patched()
    block = layers_of(model)[0].mlp
    x = torch.randn(2, 3, 64, device=DEVICE, requires_grad=True)
    (expected,) = torch.autograd.grad(block(x).sum(), x)
    whole = torch.ones(64, 3, 2, device=DEVICE).permute(2, 1, 0)
    (found,) = torch.autograd.grad(block(x), x, whole)
    torch.testing.assert_close(found, expected)


@needs_kernels
def test_a_second_derivative_is_refused(calls):
    _, model = patched()
    x = torch.randn(1, 2, 64, device=DEVICE, requires_grad=True)
    block = layers_of(model)[0].mlp
    with pytest.raises(RuntimeError, match=r"create_graph=True: .* no second derivative; cc_kernels.use_backend"):
        torch.autograd.grad(block(x).sum(), x, create_graph=True)
    assert calls
    with use_backend("torch"):
        (found,) = torch.autograd.grad(block(x).sum(), x, create_graph=True)
        assert torch.autograd.grad(found.sum(), x)[0].abs().sum() > 0


@needs_kernels
def test_a_gradient_after_an_input_changed_is_refused(calls):
    _, model = patched()
    x = torch.randn(1, 2, 64, device=DEVICE, requires_grad=True)
    inner = x * 1
    output = layers_of(model)[0].mlp(inner)
    inner.zero_()
    assert calls
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@needs_kernels
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant, calls):
    _, model = patched()
    expected = gradients_of(model, plain())
    calls.clear()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_same_gradients(gradients_of(model, plain()), expected)
    assert len(calls) == (1 if reentrant else 2) * LAYERS  # a reentrant forward runs without gradients


def hooked(kind):
    def change(linear):
        getattr(linear, kind)(lambda *given: None)

    return change


def own_forward(linear):
    linear.forward = lambda x: F.linear(x, linear.weight)


def subclass(linear):
    linear.__class__ = type("Own", (nn.Linear,), {})


def bias(linear):
    linear.bias = nn.Parameter(torch.zeros(linear.out_features, device=DEVICE))


def plain_attribute(linear):
    weight = linear._parameters.pop("weight")
    linear.weight = weight.detach()


CHANGES = {
    "forward hook": hooked("register_forward_hook"),
    "pre-hook": hooked("register_forward_pre_hook"),
    "backward hook": hooked("register_full_backward_hook"),
    "backward pre-hook": hooked("register_full_backward_pre_hook"),
    "own forward": own_forward,
    "subclass": subclass,
    "bias": bias,
    "plain attribute": plain_attribute,
}


@needs_kernels
@pytest.mark.parametrize("projection", ["gate_proj", "up_proj", "down_proj"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_projection_that_is_watched_or_changed(projection, change, calls):
    stock, model = patched()
    block = layers_of(model)[1].mlp
    CHANGES[change](getattr(block, projection))
    found = model(**plain()).loss
    assert len(calls) == LAYERS - 1
    torch.testing.assert_close(found, stock(**plain()).loss)
    assert "layer 1: fused (SwiGLU through cc_kernels);" in str(report(model))


@needs_kernels
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "backward", "backward_pre"])
def test_hooks_on_all_modules(kind, monkeypatch, calls):
    _, model = patched()
    monkeypatch.setattr(module_hooks, f"_global_{kind}_hooks", {0: lambda *given: None})
    assert plain_weights(*(getattr(layers_of(model)[0].mlp, name) for name in ("gate_proj", "down_proj"))) is None


@needs_kernels
def test_another_forward_of_all_linear_modules(monkeypatch, calls):
    _, model = patched()
    stock = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: stock(self, x))
    model(**plain())
    assert not calls


@needs_kernels
def test_others_who_prevent_it(calls):
    """No gradients, autocast, a mode that looks at operators, another backend; one projection for gate and up."""
    _, model = patched()
    with torch.no_grad():
        model(**plain())
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16), use_backend("auto"):
        model(**plain())
    with FlopCounterMode(display=False), use_backend("auto"):
        model(**plain())
    with use_backend("torch"):
        model(**plain())
    patched("phi3")[1](**plain())
    assert not calls


@needs_kernels
def test_runs_whole_asks_for_autocast_and_modes():
    x = torch.zeros(1, device=DEVICE)
    assert runs_whole(x, "silu")
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        assert not runs_whole(x, "silu")
    with FlopCounterMode(display=False):
        assert not runs_whole(x, "silu")
    assert not runs_whole(nn.Parameter(x), "silu")  # a tensor of a class of its own


@needs_kernels
def test_training_keeps_one_activation_less_per_layer(monkeypatch):
    _, model = patched(use_cache=False)

    def kept():
        storages = {}

        def pack(saved):
            storages[saved.data_ptr()] = saved.nbytes
            return saved

        with saved_tensors_hooks(pack, lambda saved: saved):
            loss = model(**plain(rows=2, main=9)).loss
        return sum(storages.values()), loss  # which keeps the tensors, and so their addresses

    (after, _), inner = kept(), model.config.intermediate_size
    monkeypatch.setattr(decoder, "runs_whole", lambda *_: False)
    assert kept()[0] - after == LAYERS * 2 * 9 * inner * 4


@needs_kernels
def test_report_says_so():
    assert "SwiGLU through cc_kernels, in training one function that keeps no product" in str(report(patched()[1]))
    assert "in training" not in str(report(patched("phi3")[1]))


@in_a_process_of_its_own
def test_interpreted():
    run_interpreted(__file__)
