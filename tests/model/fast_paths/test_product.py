"""`save_memory`: the down projection's input is computed again in the backward; gradients and modules stay."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from model_pairs import assert_same_gradients, batch, gradients, gumbel, pair
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from cc_model import CCConfig, patch_model, report, save_memory, unpatch_model
from cc_model.patching import decoder
from cc_model.specs import layers_of
from cc_model.testing import tiny_model

LAYERS = 4


@pytest.fixture
def computed(monkeypatch):
    """How often a product was computed, in forward and backward."""
    counted, stock = [], decoder.swiglu

    def swiglu(gate, up):
        counted.append(gate.shape)
        return stock(gate, up)

    monkeypatch.setattr(decoder, "swiglu", swiglu)
    return counted


def gradients_of(model, data=None, **arguments):
    model.train().zero_grad()
    torch.manual_seed(5)
    model(**(data or batch()), gumbel_noise=gumbel(3), **arguments).loss.backward()
    return gradients(model)


def memory_of(tensor):
    return StorageWeakRef(tensor.untyped_storage())


def assert_equal_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(actual[name], gradient), name


@pytest.mark.parametrize("pivot_grad", [False, True])
def test_gradients_are_equal_bit_for_bit(architecture, pivot_grad, computed):
    _, model = pair(architecture, CCConfig(pivot_grad=pivot_grad))
    expected = gradients_of(model)
    before = len(computed)
    assert_equal_bits(gradients_of(save_memory(model)), expected)
    assert len(computed) - before == before + LAYERS * (
        1 + pivot_grad
    )  # the pivot pass without a gradient saves nothing


@pytest.mark.parametrize("model_type", ["phi3", "gemma", "gemma2", "starcoder2", "mixtral"])
def test_other_blocks(model_type):
    """Gate and up in one projection; GeGLU; a norm after the block; biases; blocks that run a forward of their own."""
    _, model = pair(model_type)
    expected = gradients_of(model)
    assert_equal_bits(gradients_of(save_memory(model)), expected)


@pytest.mark.parametrize("bias", [False, True])
def test_biases(bias, computed):
    """A projection with a bias saves a flattened view, one without the tensor itself or its transpose."""
    _, model = pair("llama", mlp_bias=bias)
    expected = gradients_of(model)
    before = len(computed)
    assert_equal_bits(gradients_of(save_memory(model)), expected)
    assert len(computed) == 2 * before + LAYERS


def test_the_product_is_not_kept():
    """Between forward and backward its memory is gone."""
    _, model = pair("llama", num_hidden_layers=1)
    block = layers_of(model)[0].mlp.train()
    products = []
    block.down_proj.register_forward_pre_hook(lambda module, args: products.append(memory_of(args[0])))
    for enabled in (False, True):
        save_memory(model, enabled)
        output = block(torch.randn(3, 50, 64, requires_grad=True))
        assert products[-1].expired() == enabled
        output.sum().backward()


def test_twice_through_the_graph(computed):
    """`retain_graph`, and a gradient of the gradient, which needs the product's own graph."""
    _, model = pair("llama", num_hidden_layers=1)
    block = layers_of(model)[0].mlp.train()
    x = torch.randn(2, 5, 64, requires_grad=True)
    results = []
    for enabled in (False, True):
        save_memory(model, enabled)
        output = block(x).square().sum()
        weight = block.down_proj.weight
        first = torch.autograd.grad(output, weight, retain_graph=True)[0]
        again = torch.autograd.grad(output, weight, create_graph=True)[0]
        second = torch.autograd.grad(again.square().sum(), [x, block.gate_proj.weight, weight])
        assert torch.equal(first, again)
        results.append((first, *second))
    for plain, ours in zip(*results):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)
    assert len(computed) == 1 + (1 + 3)  # the forward, and once for each of the three gradients


def test_mixed_precision():
    _, model = pair("llama")
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients_of(model)
        assert_equal_bits(gradients_of(save_memory(model)), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_lora(dropout, computed):
    """Adapters read the same input, or a dropout of it, which is kept."""
    peft = pytest.importorskip("peft")
    from adapters import fill, lora

    _, model = pair("llama")
    adapted = fill(peft.get_peft_model(model, lora(lora_dropout=dropout)))
    expected = gradients_of(adapted)
    before = len(computed)
    assert_equal_bits(gradients_of(save_memory(adapted)), expected)
    # The base projection is frozen and saves no input; a dropout's output is another tensor than the product.
    assert len(computed) - 2 * before == (LAYERS if dropout == 0 else 0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_keeps_nothing_more(reentrant):
    """Between forward and backward nothing of a block is alive, with and without the option."""
    _, model = pair("llama")
    plain = gradients_of(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.train()
    gates = []
    for layer in layers_of(model):
        layer.mlp.gate_proj.register_forward_hook(lambda module, args, output: gates.append(memory_of(output)))
    for enabled in (False, True):
        save_memory(model, enabled)
        gates.clear()
        output = model(**batch(), gumbel_noise=gumbel(3))
        assert len(gates) == 2 * LAYERS
        assert all(gate.expired() for gate in gates)
        del output
        assert_same_gradients(gradients_of(model), plain)


def test_hooks_of_others_see_what_is_saved():
    """As those that move saved tensors to the host: ours stand back, and nothing is computed again."""
    _, model = pair("llama")
    expected = gradients_of(model)
    seen = []
    for enabled in (False, True):
        save_memory(model, enabled)
        model.zero_grad()
        count = 0

        def pack(tensor):
            nonlocal count
            count += 1
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            model(**batch(), gumbel_noise=gumbel(3)).loss.backward()
        seen.append(count)
        assert_equal_bits(gradients(model), expected)
    assert seen[0] == seen[1]


def test_a_hook_that_writes_to_the_input(computed):
    """The projection then saves other numbers than gate and up give: they are kept."""
    _, model = pair("llama", num_hidden_layers=1)
    block = layers_of(model)[0].mlp.train()
    block.down_proj.register_forward_pre_hook(lambda module, args: (args[0].mul_(3),))
    x = torch.randn(2, 5, 64)
    results = []
    for enabled in (False, True):
        save_memory(model, enabled)
        block.zero_grad()
        block(x).sum().backward()
        results.append(block.down_proj.weight.grad.clone())
    assert torch.equal(*results)
    assert len(computed) == 2


def test_nothing_more_is_kept_where_the_product_needs_no_gradient():
    """Nobody else keeps gate and up then: the recipe would be twice as large as the product."""
    _, model = pair("llama", num_hidden_layers=1)
    block = layers_of(save_memory(model))[0].mlp.train()
    block.gate_proj.requires_grad_(False)
    block.up_proj.requires_grad_(False)
    gates = []
    block.gate_proj.register_forward_hook(lambda module, args, output: gates.append(memory_of(output)))
    output = block(torch.randn(2, 5, 64))
    assert gates[0].expired()
    output.sum().backward()


def test_where_hooks_are_forbidden(computed):
    """As inside the transforms of `torch.func`."""
    _, model = pair("llama", num_hidden_layers=1)
    block = layers_of(save_memory(model))[0].mlp.train()
    with torch.autograd.graph.disable_saved_tensors_hooks("none here"):
        block(torch.randn(2, 5, 64)).sum().backward()
    assert len(computed) == 1


def test_weights_written_before_the_backward_are_found():
    """As autograd finds them without hooks."""
    _, model = pair("llama", num_hidden_layers=1)
    block = layers_of(save_memory(model))[0].mlp.train()
    output = block(torch.randn(2, 5, 64, requires_grad=True))
    with torch.no_grad():
        block.down_proj.weight.add_(1)
    with pytest.raises(RuntimeError, match=r"a tensor .* that a down projection saved is at version"):
        output.sum().backward()


def test_compiled_layers(computed):
    _, model = pair("llama")
    expected = gradients_of(model)
    save_memory(model)
    for layer in layers_of(model):
        layer.compile(backend="aot_eager", fullgraph=True)
    assert_same_gradients(gradients_of(model), expected)
    assert report(model).notes[-1] == (
        "memory: the down projections of layers 0-3 keep their input (it is compiled, and the compiler chooses what "
        "is kept)"
    )


def test_evaluation_is_as_before(computed):
    _, model = pair("llama")
    with torch.no_grad():
        expected = model.eval()(**batch()).logits
        assert torch.equal(save_memory(model)(**batch()).logits, expected)


def test_the_switch():
    """A copy has it, the state dict has not, `unpatch_model` takes it away."""
    plain = patch_model(tiny_model("llama"))
    names, stock = set(plain.state_dict()), report(plain).notes
    model = save_memory(plain)
    said = "memory: the down projections of layers 0-3 compute their input again in the backward"
    for copied in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert report(copied).notes == (*stock, said)
        assert set(copied.state_dict()) == names
    assert report(save_memory(copy.deepcopy(model), False)).notes == stock
    assert report(patch_model(unpatch_model(model))).notes == stock


def test_the_report_says_where_it_does_nothing():
    model = save_memory(patch_model(tiny_model("mixtral")))
    assert (
        report(model).notes[-1].endswith("layers 0-3 keep their input (MixtralSparseMoeBlock is a mixture of experts)")
    )
    model = save_memory(patch_model(tiny_model("llama")))
    model.model.layers[1].mlp.down_proj.weight.ds_id = 7
    assert [note for note in report(model).notes if note.startswith("memory")] == [
        "memory: the down projections of layer 0 compute their input again in the backward",
        "memory: the down projections of layer 1 keep their input (ZeRO-3 partitions its parameters)",
        "memory: the down projections of layers 2-3 compute their input again in the backward",
    ]
    model.gradient_checkpointing_enable()
    assert report(model).notes[-1].endswith("(of one layer at a time, by gradient checkpointing)")


def test_partitioned_parameters_are_left_alone(computed):
    _, model = pair("llama", num_hidden_layers=1)
    block = layers_of(save_memory(model))[0].mlp
    for count in (2, 3):
        block(torch.randn(2, 5, 64)).sum().backward()
        assert len(computed) == count
        block.down_proj.weight.ds_id = 7


def test_what_is_refused():
    with pytest.raises(TypeError, match="model: expected a torch module, got int"):
        save_memory(1)
    with pytest.raises(ValueError, match="model: expected a patched model, got LlamaForCausalLM"):
        save_memory(tiny_model("llama"))
    with pytest.raises(TypeError, match="enabled: expected a bool, got str"):
        save_memory(patch_model(tiny_model("llama")), "yes")
    with pytest.raises(TypeError, match="model: expected a torch module"):
        save_memory(nn.Linear)
